from __future__ import annotations

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.control.placed_counts import PlacedCounts
from pdray.core.mode import Mode
from pdray.core.placement import Together
from pdray.core.snapshot import Role
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot


def test_requests_are_counted_by_how_they_were_placed() -> None:
    counts = PlacedCounts()
    counts.placed(None, ["prefill", "decode"], 0.0)
    counts.placed(Together.SHORT, ["decode"], 0.0)
    counts.placed(Together.SHORT, ["decode"], 0.0)
    by_how = {"disaggregated": 1, "one_pool": 0, "short": 2, "cheaper": 0, "alone": 0}
    assert counts.by_how == by_how


def test_a_pool_is_idle_after_many_requests_and_some_time_without_a_part_in_any() -> None:
    counts = PlacedCounts()
    pools = ["prefill", "decode"]
    for second in range(100):
        assert counts.idle(pools, second) == (["prefill"] if second >= 50 else [])
        counts.placed(Together.SHORT, ["decode"], second)
    counts.placed(None, pools, 100.0)
    assert counts.idle(pools, 101.0) == []


def test_neither_a_burst_nor_a_quiet_hour_is_an_alarm() -> None:
    counts = PlacedCounts()
    pools = ["prefill", "decode"]
    assert counts.idle(pools, 0.0) == []
    for _ in range(1000):
        counts.placed(Together.SHORT, ["decode"], 1.0)
    assert counts.idle(pools, 2.0) == []
    counts = PlacedCounts()
    assert counts.idle(pools, 0.0) == []
    counts.placed(Together.SHORT, ["decode"], 1.0)
    assert counts.idle(pools, 3600.0) == []


def test_the_control_plane_counts_what_it_places() -> None:
    config = ControlConfig(max_queued_requests=0, queue_timeout_s=60.0, mode=Mode.SOFT)
    control = ControlPlane(config, make_policy("cost"))
    for name in ("m0", "m1"):
        control.worker_joined(make_info(name, Role.MIXED), 0.0)
        control.snapshot(make_snapshot(name), 0.0)
    control.place("f", [make_ask(f"r{i}") for i in range(3)], 1.0)
    assert control.num_placed_by_how["one_pool"] == 3
    assert control.idle_pools(2.0) == []
