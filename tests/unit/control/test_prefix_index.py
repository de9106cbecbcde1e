"""Which workers have which prefixes, as they tell."""

from __future__ import annotations

from array import array

from pdray.control.prefix_index import PrefixIndex
from pdray.core.prefix_report import KVTier, NameChanges, PrefixReport
from pdray.core.request import WorkerId

A, B, C = WorkerId("a"), WorkerId("b"), WorkerId("c")
NAMES = tuple(1000 + 7 * i for i in range(100))
"""As numbers."""
OTHER = tuple(9000 + 7 * i for i in range(100))


def report(
    number: int,
    added: tuple[int, ...] = (),
    removed: tuple[int, ...] = (),
    tier: KVTier = KVTier.DEVICE,
) -> PrefixReport:
    changes = NameChanges(
        tier=tier, added=array("Q", added).tobytes(), removed=array("Q", removed).tobytes()
    )
    return PrefixReport(number=number, changes=(changes,))


def index_of(**told: int) -> PrefixIndex:
    """Workers that have told so many of NAMES."""
    index = PrefixIndex(10_000)
    for name, count in told.items():
        index.join(WorkerId(name), 16)
        assert index.report(WorkerId(name), report(0, NAMES[:count]))
    return index


def test_the_longest_prefix_is_found_and_who_has_a_good_part_of_it() -> None:
    index = index_of(a=80, b=70, c=20)
    assert index.find(NAMES) == {A: 80 * 16, B: 70 * 16}
    assert index.find(NAMES[:30]) == {A: 30 * 16, B: 30 * 16, C: 20 * 16}
    assert index.find(OTHER) == index.find(()) == {}
    assert [index.count_tokens(NAMES, each) for each in (A, B, C)] == [80 * 16, 70 * 16, 20 * 16]
    assert index.count_tokens(NAMES, WorkerId("unknown")) == 0


def test_every_length_is_found() -> None:
    for count in range(len(NAMES) + 1):
        assert index_of(a=count).count_tokens(NAMES, A) == 16 * count


def test_what_is_evicted_is_forgotten_where_it_was_and_found_below() -> None:
    index = index_of(a=10)
    assert index.report(A, report(1, NAMES[6:10], tier=KVTier.DISK))
    assert index.report(A, report(2, removed=NAMES[5:10]))
    assert index.count_tokens(NAMES, A) > 0
    assert [index.tier_of(name, A) for name in NAMES[4:7]] == [KVTier.DEVICE, None, KVTier.DISK]
    assert index.report(A, report(3, removed=NAMES[6:10], tier=KVTier.DISK))
    assert index.count_tokens(NAMES, A) == 5 * 16


def test_workers_with_larger_blocks_have_fewer_names() -> None:
    index = index_of(a=13)
    index.join(B, 64)
    index.report(B, report(0, NAMES[3:40:4]))
    assert index.find(NAMES) == {B: 40 * 16}
    assert index.count_tokens(NAMES, A) == 12 * 16
    index.leave(B)
    assert index.count_tokens(NAMES, A) == 13 * 16


def test_a_lost_report_asks_for_a_new_start_which_voids_what_was_told() -> None:
    index = index_of(a=10)
    assert not index.report(A, report(2, NAMES[10:20]))
    assert index.count_tokens(NAMES, A) == 10 * 16
    assert index.report(A, report(0, NAMES[:3]))
    assert index.report(A, report(1, NAMES[3:4]))
    assert index.find(NAMES) == {A: 4 * 16}


def test_a_worker_that_has_not_joined_has_to_start_again_once_it_has() -> None:
    index = PrefixIndex(100)
    assert not index.report(A, report(0, NAMES[:3]))
    index.join(A, 16)
    assert not index.report(A, report(1, NAMES[3:5]))
    assert index.report(A, report(0, NAMES[:5]))
    assert index.count_tokens(NAMES, A) == 5 * 16


def test_of_a_worker_that_left_nothing_is_found_and_by_and_by_nothing_is_kept() -> None:
    index = index_of(a=50, b=10)
    index.leave(A)
    assert index.find(NAMES) == {B: 160}
    index.check_integrity()
    index.sweep()
    index.check_integrity()
    assert len(index) == 10


def test_of_very_many_who_have_it_only_some_are_named_but_each_can_be_asked_for() -> None:
    index = index_of(**{f"w{i}": 10 for i in range(100)})
    found = index.find(NAMES)
    assert 4 <= len(found) <= 16
    assert set(found.values()) == {160}
    assert all(index.count_tokens(NAMES, WorkerId(f"w{i}")) == 160 for i in range(100))
