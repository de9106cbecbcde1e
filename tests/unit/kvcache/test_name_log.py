from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdray.core.prefix_report import PREFIX_NAME_BYTES, KVTier, NameChanges
from pdray.kvcache.name_log import NameLog


def name(number: int, group_id: int = 0) -> tuple[int, bytes]:
    return group_id, number.to_bytes(2, "big") * 8


def told(changes: NameChanges | None) -> tuple[set[bytes], set[bytes]]:
    if changes is None:
        return set(), set()
    added, removed = (
        {packed[i : i + PREFIX_NAME_BYTES] for i in range(0, len(packed), PREFIX_NAME_BYTES)}
        for packed in (changes.added, changes.removed)
    )
    return added, removed


def short(*numbers: int) -> set[bytes]:
    return {name(number)[1][:PREFIX_NAME_BYTES] for number in numbers}


def test_what_went_before_it_was_told_of_is_not_told() -> None:
    log = NameLog(KVTier.DEVICE, 0)
    log.came(name(1))
    log.came(name(2))
    log.went(name(1))
    assert told(log.take(10)) == (short(2), set())
    log.went(name(2))
    log.came(name(2))
    assert log.take(10) is None


def test_only_one_groups_names_are_told() -> None:
    log = NameLog(KVTier.DEVICE, 1)
    log.came(name(1, group_id=0))
    log.went(name(2, group_id=0))
    log.came(name(3, group_id=1))
    assert told(log.take(10)) == (short(3), set())


def test_after_a_new_start_all_that_is_here_is_told_in_pieces() -> None:
    log = NameLog(KVTier.HOST, 0)
    log.came(name(1))
    log.take(10)
    log.went(name(1))
    log.start_again([name(2), name(3), name(4)])
    first, second = log.take(2), log.take(2)
    assert first is not None
    assert first.tier is KVTier.HOST
    assert (told(first), told(second)) == ((short(2, 3), set()), (short(4), set()))


@given(
    events=st.lists(
        st.one_of(
            st.tuples(st.just("turn"), st.integers(0, 5)),
            st.tuples(st.just("take"), st.integers(1, 3)),
            st.tuples(st.just("start again"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_whoever_hears_all_of_it_knows_what_is_here(events: list[tuple[str, int]]) -> None:
    log = NameLog(KVTier.DEVICE, 0)
    here: set[int] = set()
    known: set[bytes] = set()
    for what, number in events:
        if what == "turn":
            (log.went if number in here else log.came)(name(number))
            here ^= {number}
        elif what == "take":
            added, removed = told(log.take(number))
            assert not added & known
            assert removed <= known
            known = (known | added) - removed
        else:
            log.start_again(name(number) for number in here)
            known = set()
    while (changes := log.take(2)) is not None:
        added, removed = told(changes)
        known = (known | added) - removed
    assert known == short(*here)
