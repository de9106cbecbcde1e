"""What placement knows of the links between node groups."""

from __future__ import annotations

import pytest

from pdray.control.fleet import Fleet
from pdray.core.link_cost import LinkCost
from pdray.core.snapshot import KVSpan, Role
from tests.fleet_factories import make_info, make_snapshot


def cost(source: str, latency_s: float, num_reads: int = 1) -> LinkCost:
    return LinkCost(source=source, latency_s=latency_s, bytes_per_s=1e6, num_reads=num_reads)


def fleet_of(**node_groups: str) -> Fleet:
    fleet = Fleet()
    for name, group in node_groups.items():
        fleet.add(make_info(name, Role.MIXED, node_group=group), 0.0)
    return fleet


def read_s(fleet: Fleet, source: str, target: str) -> float | None:
    found = fleet.link_cost(source, target)
    return None if found is None else found.read_s(1_000_000)


def test_a_cost_holds_for_both_groups_in_that_direction() -> None:
    fleet = fleet_of(d1="large", d2="large")
    assert read_s(fleet, "fast", "large") is None
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 1.0)
    assert read_s(fleet, "fast", "large") == pytest.approx(1.5)
    assert read_s(fleet, "large", "fast") is None


def test_the_newest_measurement_counts_not_the_newest_repetition_of_one() -> None:
    fleet = fleet_of(d1="large", d2="large")
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 1.0)
    fleet.update(make_snapshot("d2", reads=(cost("fast", 2.0),)), 2.0)
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.5),)), 3.0)
    assert read_s(fleet, "fast", "large") == pytest.approx(3.0)
    fleet.update(make_snapshot("d1", reads=(cost("fast", 0.7, num_reads=2),)), 4.0)
    assert read_s(fleet, "fast", "large") == pytest.approx(1.7)


def test_a_window_caps_what_is_read() -> None:
    spans = (
        KVSpan(bytes_per_token=10, window_tokens=None),
        KVSpan(bytes_per_token=3, window_tokens=100),
    )
    assert [sum(span.num_bytes(n) for span in spans) for n in (0, 50, 1000)] == [0, 650, 10_300]
