from __future__ import annotations

from pdray.control.fleet import Fleet
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.policy.placement.base import PlacementChoice
from pdray.policy.placement.least_loaded import LeastLoaded
from tests.fleet_factories import make_ask, make_info, make_snapshot


def fleet_with(num_prefill: int, num_decode: int) -> Fleet:
    fleet = Fleet()
    for i in range(num_prefill):
        fleet.add(make_info(f"p{i}", Role.PREFILL), 0.0)
    for i in range(num_decode):
        fleet.add(make_info(f"d{i}", Role.DECODE), 0.0)
    return fleet


def place(fleet: Fleet) -> PlacementChoice:
    choice = LeastLoaded().place(fleet, make_ask())
    assert choice is not None
    return choice


def test_the_prefill_worker_with_the_smallest_backlog_is_chosen() -> None:
    fleet = fleet_with(3, 1)
    for worker_id, num_tokens in (("p0", 300), ("p1", 100), ("p2", 200)):
        fleet.update(make_snapshot(worker_id, prefill_backlog_tokens=num_tokens), 0.0)
    assert place(fleet).prefill_id == "p1"


def test_prompts_placed_since_the_snapshot_count_until_the_next_one() -> None:
    fleet = fleet_with(2, 1)
    fleet.book_prefill(WorkerId("p0"), 500, now=1.0)
    assert place(fleet).prefill_id == "p1"
    fleet.update(make_snapshot("p0", prefill_backlog_tokens=0), 1.0)
    assert place(fleet).prefill_id == "p1", "the snapshot cannot know of it yet"
    fleet.update(make_snapshot("p0", prefill_backlog_tokens=0), 1.25)
    assert place(fleet).prefill_id == "p0"


def test_decode_candidates_are_ranked_by_the_fuller_of_batch_and_memory() -> None:
    fleet = fleet_with(1, 3)
    fleet.book_decode(WorkerId("d0"), 3, 300)  # 3 of a batch of 4
    fleet.update(make_snapshot("d1", num_held_blocks=50), 0.0)
    fleet.update(make_snapshot("d2", num_held_blocks=90), 0.0)
    assert place(fleet).decode_ids == ("d1", "d0", "d2")


def test_equal_workers_are_taken_in_the_order_they_joined() -> None:
    choice = place(fleet_with(3, 3))
    assert choice.prefill_id == "p0"
    assert choice.decode_ids == ("d0", "d1", "d2")
