"""Every world that an owner, two readers and two blocks can get into (tests/lease_model.py), one by
one; and that the search finds the bugs that somebody could have put into the protocol."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pdray.transfer import reading
from pdray.transfer.lease import LeaseEvent, LeaseState
from pdray.transfer.reading import ReadEvent, ReadState
from tests import lease_model
from tests.lease_model import Rules, Side, World, ends, fault_of, first_world, successors
from tests.planted_bugs import (
    Plant,
    change_lease,
    change_read,
    count_a_renewal_from_its_answer,
    forget_that_a_lease_was_taken,
    give_the_reader_more_time_than_the_owner,
)

REUSED = "an owner's block was given away while a read of it could count"
FILLED = "a reader's block was given away while a read could fill it"
STALE = "a block was used that was others' when it was read"
ENDLESS = "a wait never ends"


@pytest.fixture(autouse=True)
def forget_what_the_tables_said() -> Iterator[None]:
    """The model remembers steps, and some tests change the tables."""
    yield
    for remembered in (lease_model.steps, lease_model.later, lease_model.ends):
        remembered.cache_clear()


def search(rules: Rules) -> tuple[set[World], set[Side], str | None]:
    """All worlds, or those up to the first in which something is wrong, and what."""
    start = first_world()
    seen, todo = {start}, [start]
    sides: set[Side] = set()
    while todo:
        world = todo.pop()
        fault = fault_of(world, rules)
        if fault is None and not all(ends(side) for side in world.sides if side not in sides):
            fault = ENDLESS
        if fault is not None:
            return seen, sides, fault
        sides.update(world.sides)
        for reached in successors(world, rules):
            if reached not in seen:
                seen.add(reached)
                todo.append(reached)
    return seen, sides, None


def check_all(rules: Rules) -> None:
    worlds, sides, fault = search(rules)
    assert fault is None
    leases = {side.lease.state for side in sides if side.lease is not None}
    assert leases == set(LeaseState) - {LeaseState.ENDED}
    reads = {side.read.state for side in sides if side.read is not None}
    assert reads == set(ReadState) - reading.ENDED
    # The second reader reads, and has it all, whatever has become of the first one's lease.
    for has_all in (False, True):
        firsts = {
            None if first.lease is None else first.lease.state
            for (first, second), _ in worlds
            if (second.has_joined if has_all else second.read is not None)
        }
        assert {None, LeaseState.ENDING, LeaseState.QUARANTINED} <= firsts


def test_no_world_has_a_fault_and_every_wait_ends() -> None:
    check_all(Rules())


@pytest.mark.slow
def test_nor_where_a_readers_clock_may_stop() -> None:
    check_all(Rules(clocks_stop=True))


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (change_lease(LeaseState.GRANTED, LeaseEvent.READER_LOST, LeaseState.ENDED), REUSED),
        (change_lease(LeaseState.GRANTED, LeaseEvent.WITHDRAW, LeaseState.ENDED), REUSED),
        (give_the_reader_more_time_than_the_owner, REUSED),
        (count_a_renewal_from_its_answer, REUSED),
        (change_read(ReadState.READING, ReadEvent.GIVE_UP, ReadState.GIVEN_UP), FILLED),
        (change_read(ReadState.FINISHING, ReadEvent.GIVE_UP, ReadState.GIVEN_UP), FILLED),
        (forget_that_a_lease_was_taken, REUSED),
        (change_lease(LeaseState.ENDING, LeaseEvent.DEADLINE, None), ENDLESS),
        (change_lease(LeaseState.QUARANTINED, LeaseEvent.QUARANTINE_OVER, None), ENDLESS),
        (change_read(ReadState.WAITING, ReadEvent.GIVE_UP, None), ENDLESS),
    ],
)
def test_the_search_finds_bugs(plant: Plant, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert search(Rules())[-1] == fault


def test_without_epochs_a_reader_whose_clock_stopped_uses_others_blocks() -> None:
    assert search(Rules(clocks_stop=True, has_epochs=False))[-1] == STALE
