"""One pool's policy over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from pdray.core.scaling import Aggregation, PlaceCounts
from pdray.policy.scaling.base import ScalingPolicy, ScheduledFloor
from pdray.policy.scaling.evaluate import Evaluation, PolicyMemory, evaluate
from tests.scaling_factories import Pool, make_rails, make_scaling_policy, make_worker

KV = {"kv_utilization": 0.5}


def at(kv: float, num_workers: int = 1, *, num_starting: int = 0) -> Pool:
    workers = num_workers * (make_worker(kv_utilization=kv),)
    return Pool(workers=workers, places=PlaceCounts(num_starting=num_starting, startup_s=60.0))


def run(
    policy: ScalingPolicy, pools: Iterable[Pool], *, target: int = 1, unix_time: float = 0.0
) -> list[Evaluation]:
    memory, evaluations = PolicyMemory(target=target), []
    for now, pool in enumerate(pools):
        evaluation, memory = evaluate(pool.view, policy, memory, unix_time + now, float(now))
        evaluations.append(evaluation)
    return evaluations


def test_the_largest_demand_wins() -> None:
    policy = make_scaling_policy(targets={"kv_utilization": 0.5, "batch_size": 0.5})
    pool = Pool(workers=(make_worker(kv_utilization=0.5, num_running=48),))
    (evaluation,) = run(policy, [pool])
    assert evaluation.demand == pytest.approx(3.0)
    assert evaluation.desired == 3
    assert evaluation.reason.startswith("batch_size 1.5, target 0.5")


@pytest.mark.parametrize(
    ("aggregation", "workers"),
    [(Aggregation.MEAN, 2.0), (Aggregation.MAX, 4.0), (Aggregation.MIN, 1.0)],
)
def test_what_counts_is_the_look_back_period(aggregation: Aggregation, workers: float) -> None:
    policy = make_scaling_policy(targets=KV, look_back_period_s=3.0, aggregation=aggregation)
    last = run(policy, [at(10.0), at(0.5), at(0.5), at(2.0)])[-1]
    assert last.aggregated == pytest.approx(workers)


def test_workers_that_start_count_before_more_are_asked_for() -> None:
    policy = make_scaling_policy(make_rails(upscaling_factor=0.5), targets=KV)
    (alone,) = run(policy, [at(2.0)])
    assert alone.desired == 3  # half of the way from 1 to 4
    (helped,) = run(policy, [at(2.0, num_starting=3)], target=4)
    assert helped.desired == 4


def test_a_silent_worker_holds_the_last_target() -> None:
    policy = make_scaling_policy(targets=KV)
    stale = Pool(workers=(make_worker(kv_utilization=1.0),), is_stale=True)
    (evaluation,) = run(policy, [stale], target=3)
    assert evaluation.desired == 3
    assert evaluation.reason.startswith("stale")


def test_a_pool_whose_first_worker_starts_is_left_in_peace() -> None:
    policy = make_scaling_policy(make_rails(min_replicas=0), targets=KV)
    (evaluation,) = run(policy, [Pool(workers=(), num_queued=9)], target=2)
    assert evaluation.desired == 2


def test_a_pool_without_workers_gets_one_when_somebody_waits() -> None:
    policy = make_scaling_policy(make_rails(min_replicas=0, upscale_delay_s=30.0), targets=KV)
    nobody, somebody = Pool(workers=()), Pool(workers=(), num_queued=1)
    assert [each.desired for each in run(policy, [nobody, nobody, somebody], target=0)] == [0, 0, 1]


def test_a_rising_load_raises_the_floor_before_the_demand_does() -> None:
    rising = [at(0.5 + 0.005 * number) for number in range(600)]
    still = [at(0.5)] * 600
    policy = make_scaling_policy(targets=KV, is_predictive=True)
    foretold = run(policy, rising)[-1]
    assert foretold.floor > foretold.demand + 0.5
    assert run(policy, still)[-1].floor == pytest.approx(1.0, abs=0.01)
    assert run(make_scaling_policy(targets=KV), rising)[-1].floor == 0.0


def test_a_load_that_has_gone_is_foretold_no_more_and_brings_no_worker_back() -> None:
    policy = make_scaling_policy(make_rails(min_replicas=0), targets=KV, is_predictive=True)
    busy, idle, none = at(0.5), at(0.0), Pool(workers=())
    memory, targets = PolicyMemory(target=1), []
    for now, pool in enumerate([busy] * 300 + [idle] * 3600 + [none] * 300):
        evaluation, memory = evaluate(pool.view, policy, memory, 0.0, float(now))
        memory = replace(memory, target=evaluation.desired)
        targets.append(evaluation.desired)
    assert targets[299] == 1
    assert set(targets[-400:]) == {0}


MONDAY_8_UTC = 1_700_467_200.0  # 2023-11-20


@pytest.mark.parametrize(
    ("floor", "hours_later", "expected"),
    [
        ({"weekdays": {0}, "start_s": 8 * 3600, "end_s": 10 * 3600}, 0.0, 4),
        ({"weekdays": {0}, "start_s": 8 * 3600, "end_s": 10 * 3600}, 2.0, 0),
        ({"weekdays": {1}, "start_s": 8 * 3600, "end_s": 10 * 3600}, 0.0, 0),
        ({"weekdays": {0}, "start_s": 22 * 3600, "end_s": 6 * 3600}, 20.0, 4),
        ({"weekdays": {1}, "start_s": 22 * 3600, "end_s": 6 * 3600}, 20.0, 0),
        (
            {"weekdays": {0}, "start_s": 9 * 3600, "end_s": 10 * 3600, "timezone": "Europe/Berlin"},
            0.0,
            4,
        ),
    ],
)
def test_the_time_of_day_has_floors(
    floor: dict[str, object], hours_later: float, expected: int
) -> None:
    fields = {"timezone": "UTC", **floor, "weekdays": frozenset(floor["weekdays"])}  # type: ignore[call-overload]
    scheduled = ScheduledFloor(min_replicas=4, **fields)  # type: ignore[arg-type]
    policy = make_scaling_policy(targets=KV, schedule=(scheduled,))
    (evaluation,) = run(policy, [at(0.1)], unix_time=MONDAY_8_UTC + 3600 * hours_later)
    assert evaluation.floor == expected
    assert evaluation.desired == max(expected, 1)
