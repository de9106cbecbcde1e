"""What placement knows of the links between node groups."""

from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet
from pdray.core.link_cost import LinkCost
from pdray.core.request import WorkerId
from pdray.core.snapshot import KVSpan, Role
from tests.fleet_factories import make_info, make_snapshot


def cost(source: str, latency_s: float, num_reads: int = 1) -> LinkCost:
    return LinkCost(source=source, latency_s=latency_s, bytes_per_s=1e6, num_reads=num_reads)


def fleet_of(**node_groups: str) -> Fleet:
    fleet = Fleet()
    for name, group in node_groups.items():
        fleet.add(make_info(name, Role.MIXED, node_group=group), 0.0)
    return fleet


def transfer_s(fleet: Fleet, source: str, target: str) -> float | None:
    return fleet.transfer_s(WorkerId(source), WorkerId(target), 1_000_000)


def test_a_cost_holds_for_all_workers_of_both_groups_in_that_direction() -> None:
    fleet = fleet_of(p1="fast", p2="fast", d1="large", d2="large")
    assert transfer_s(fleet, "p1", "d1") is None
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 1.0)
    assert transfer_s(fleet, "p2", "d2") == pytest.approx(1.5)
    assert transfer_s(fleet, "d2", "p2") is None


def test_nothing_has_to_be_read_of_oneself() -> None:
    assert transfer_s(fleet_of(w="one"), "w", "w") == 0.0


def test_the_newest_measurement_counts_not_the_newest_repetition_of_one() -> None:
    fleet = fleet_of(p1="fast", d1="large", d2="large")
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 1.0)
    fleet.update(make_snapshot("d2", reads=(cost("fast", 2.0),)), 2.0)
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 3.0)
    assert transfer_s(fleet, "p1", "d1") == pytest.approx(3.0)
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.7, num_reads=2),)), 4.0)
    assert transfer_s(fleet, "p1", "d1") == pytest.approx(1.7)


def test_a_window_caps_what_is_read() -> None:
    spans = (
        KVSpan(bytes_per_token=10, window_tokens=None),
        KVSpan(bytes_per_token=3, window_tokens=100),
    )
    assert [sum(span.num_bytes(n) for span in spans) for n in (0, 50, 1000)] == [0, 650, 10_300]
