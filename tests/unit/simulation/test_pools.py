"""Workers that come and go by a wanted number: when, which ones, and what they cost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pdray.core.errors import ConfigError
from pdray.core.mode import Mode
from pdray.simulation.profile import Profile
from pdray.simulation.result import SimulationResult
from pdray.simulation.scaler import FixedCounts
from pdray.simulation.scenario import GroupPlan
from pdray.simulation.simulator import Simulator, simulate
from tests.simulated import SLOW, Plan, profile_of, request_of, scaled, scenario_of, worker_profile


def ready_at(result: SimulationResult, pool: str) -> list[tuple[float, int]]:
    """When the number of ready workers changed, and to what."""
    changes: list[tuple[float, int]] = []
    for size in result.sizes_of(pool):
        if not changes or changes[-1][1] != size.num_ready:
            changes.append((size.at, size.num_ready))
    return changes


def test_a_worker_that_is_wanted_takes_work_when_it_has_started() -> None:
    requests = [request_of(20.0, 100, 3)]
    scaler = Plan({0.0: {"mixed": 0}, 3.0: {"mixed": 2}})
    scenario = scenario_of(requests, {"mixed": 1}, mode=Mode.SOFT, scaler=scaler, duration_s=30.0)
    result = simulate(scenario)
    assert ready_at(result, "mixed") == [(0.0, 0), (8.0, 2)]
    assert result.num_complete == 1
    (usage,) = result.usage
    assert usage.worker_s == pytest.approx(2 * (result.ended_at - 3.0))
    assert usage.gpu_s == usage.worker_s
    view = next(view for now, view in scaler.views if now == 5.0)
    assert view.pools["mixed"].num_starting == 2
    assert view.pools["mixed"].num_wanted == 2


def test_requests_wait_through_a_cold_start() -> None:
    scaler = Plan({0.0: {"mixed": 0}, 2.0: {"mixed": 1}})
    scenario = scenario_of([request_of(1.0, 100, 1)], {"mixed": 0}, mode=Mode.SOFT, scaler=scaler)
    (outcome,) = simulate(scenario).outcomes
    assert outcome.first_token_at == pytest.approx(7.0 + 0.01 + 100e-4)


def test_a_draining_worker_finishes_what_it_has_and_gets_nothing_new() -> None:
    requests = [request_of(0.0, 100, 500), request_of(0.0, 100, 500), request_of(2.0, 100, 2)]
    scaler = Plan({0.0: {"mixed": 2}, 1.0: {"mixed": 1}})
    scenario = scenario_of(requests, {"mixed": 2}, mode=Mode.SOFT, scaler=scaler)
    simulator = Simulator(scenario)
    result = simulator.run()
    assert result.num_complete == 3
    assert [size.num_draining for size in result.sizes_of("mixed")] == [0, 1, 0]
    first, second, third = sorted(result.outcomes, key=lambda each: each.arrived_at)
    assert result.sizes_of("mixed")[-1].at in (first.finished_at, second.finished_at)
    # Beside the one that goes on where it is, not alone.
    assert third.tpot_s is not None
    assert third.tpot_s > 0.0140


def test_those_that_start_go_first_when_fewer_are_wanted() -> None:
    scaler = Plan({0.0: {"mixed": 3}, 2.0: {"mixed": 1}})
    requests = [request_of(10.0, 100, 2)]
    scenario = scenario_of(requests, {"mixed": 1}, mode=Mode.SOFT, scaler=scaler)
    result = simulate(scenario)
    assert ready_at(result, "mixed") == [(0.0, 1)]
    assert result.usage[0].worker_s == pytest.approx(result.ended_at + 2 * 2.0)


def test_the_next_node_group_is_used_when_the_first_is_full() -> None:
    cheap = worker_profile("mixed", node_group="cheap", cost_per_hour=1.0, gpus=1.0)
    dear = worker_profile("mixed", node_group="dear", cost_per_hour=3.0, gpus=2.0)
    groups = (GroupPlan(node_group="cheap", max_workers=1), GroupPlan(node_group="dear"))
    base = scenario_of([], {"mixed": 3}, mode=Mode.SOFT, duration_s=3600.0)
    scenario = replace(
        base,
        profile=profile_of(cheap, dear),
        pools=(replace(base.pools[0], groups=groups),),
        scaler=FixedCounts({"mixed": 3}),
    )
    result = simulate(scenario)
    assert result.worker_hours == pytest.approx(3.0, rel=1e-3)
    assert result.gpu_hours == pytest.approx(5.0, rel=1e-3)
    assert result.cost == pytest.approx(7.0, rel=1e-3)


def test_a_scenario_that_the_profile_does_not_cover_is_refused() -> None:
    base = scenario_of([], {"prefill": 1, "decode": 1})
    with pytest.raises(ConfigError, match="no link from node group 'cpu' to 'cpu'"):
        simulate(replace(base, profile=Profile(model="m", workers=base.profile.workers)))
    wrong = replace(base.pools[1], groups=(GroupPlan(node_group="gpu"),))
    soft = replace(base.control, mode=Mode.SOFT)
    with pytest.raises(ConfigError, match="no pool 'decode' on 'gpu'"):
        simulate(replace(base, pools=(base.pools[0], wrong), control=soft))
    with pytest.raises(ConfigError, match="no pool has the role decode"):
        simulate(replace(base, pools=base.pools[:1]))
    with pytest.raises(ConfigError, match="placement = 'nearest'"):
        simulate(replace(base, placement="nearest"))


def test_the_control_planes_own_policies_scale_the_pools() -> None:
    crowd = [request_of(10.0 + 0.05 * number, 400, 20) for number in range(400)]
    scenario = scenario_of(crowd, {"prefill": 1, "decode": 1}, duration_s=200.0, worker=SLOW)
    result = simulate(scaled(scenario))
    assert result.num_complete == len(crowd)
    wanted = [size.num_wanted for size in result.sizes_of("prefill")]
    assert wanted[0] == wanted[-1] == 1
    assert max(wanted) > 1
    assert {each.decision.pool for each in result.decisions} >= {"prefill"}
    assert result.worker_hours < 2 * 4 * result.ended_at / 3600
