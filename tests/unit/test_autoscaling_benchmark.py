"""The autoscaling benchmark's parts: the search for a fixed fleet, and others' ways to scale."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fixed_search import Counts, cheapest
from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.snapshot import Role
from pdray.policy.placement import PLACEMENT
from pdray.simulation.scaler import PoolView, ScalingView
from tests.simulated import SLO

MOST = (6, 5)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    needs=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 5), st.floats(0.05, 0.5)), max_size=5
    ),
    goal=st.floats(0.1, 1.0),
    costs=st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([1.0, 3.0])),
)
def test_the_fixed_optimum_is_what_trying_all_fleets_finds(
    needs: list[tuple[int, int, float]], goal: float, costs: tuple[float, float]
) -> None:
    """Each load is kept by fleets that have its prefill and its decode workers."""

    def attain(counts: Counts) -> float:
        prefill, decode = counts
        return sum(share for p, d, share in needs if p <= prefill and d <= decode)

    def cost(counts: Counts) -> float:
        return counts[0] * costs[0] + counts[1] * costs[1]

    every = itertools.product(range(1, MOST[0] + 1), range(1, MOST[1] + 1))
    good = [cost(counts) for counts in every if attain(counts) >= goal]
    found = cheapest(attain, goal, MOST, costs)
    if not good:
        assert found is None
        return
    assert found is not None
    assert attain(found) >= goal
    assert cost(found) == min(good)


def test_ray_serves_algorithm_waits_30_s_to_go_up_and_600_s_to_go_down() -> None:
    from ray.serve.config import AutoscalingConfig

    from benchmarks.serve_autoscaler import ServeAutoscaler

    scaler = ServeAutoscaler({"mixed": AutoscalingConfig(min_replicas=1, max_replicas=10)})
    num_workers, changes = 1, []
    for second in range(1200):
        view = _view(num_workers, num_ongoing=8 if second < 200 else 0)
        wanted = scaler.look(view, float(second))["mixed"]
        if wanted != num_workers:
            changes.append((second, num_workers, wanted))
            num_workers = wanted
    (up_at, _, up_to), *_, (down_at, _, down_to) = changes
    assert (up_at, up_to) == (30, 4)  # 8 ongoing at 2 each
    assert down_to == 1
    assert down_at == pytest.approx(200 + 600, abs=60)


def _view(num_workers: int, num_ongoing: int) -> ScalingView:
    pool = PoolView(
        name="mixed",
        role=Role.MIXED,
        num_wanted=num_workers,
        num_ready=num_workers,
        num_starting=0,
        num_draining=0,
        num_ongoing_by_worker=(num_ongoing,) + (0,) * (num_workers - 1),
        backlog_tokens=0,
        kv_utilization=0.0,
    )
    return ScalingView(
        pools={"mixed": pool},
        num_queued=0,
        num_arrived=0,
        num_prompt_tokens=0,
        slo=SLO,
        control=_control(),
    )


def _control() -> ControlPlane:
    config = ControlConfig(max_queued_requests=1, queue_timeout_s=1.0, slo=SLO)
    return ControlPlane(config, PLACEMENT.get("cost")(SLO, random.Random(0)))
