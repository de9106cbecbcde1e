"""The control plane's answers to how many workers its pools should have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts, PoolTarget, ScalingDecision
from pdray.core.snapshot import Role
from pdray.core.step_time import StepTime
from pdray.policy.scaling.base import (
    Budget,
    GroupCost,
    PoolSetup,
    ScalingPolicy,
    ScalingSetup,
)
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot
from tests.scaling_factories import SLO, make_rails, make_scaling_policy

DECODE_KV = {"kv_utilization": 0.5}


def make_plane(
    policies: dict[Role, ScalingPolicy | None],
    *,
    budget: Budget | None = None,
    groups: dict[str, GroupCost] | None = None,
) -> ControlPlane:
    groups = groups or {"laptop": GroupCost(num_gpus=1.0, cost_per_hour=1.0)}
    pools = tuple(
        PoolSetup(
            name=str(role.name).lower(),
            role=role,
            node_groups=tuple(groups),
            replicas=1,
            policy=policy,
        )
        for role, policy in policies.items()
    )
    setup = ScalingSetup(pools=pools, groups=groups, budget=budget or Budget())
    config = ControlConfig(max_queued_requests=100, queue_timeout_s=60.0, slo=SLO, scaling=setup)
    return ControlPlane(config, make_policy("least_loaded", SLO))


def join(plane: ControlPlane, role: Role, *worker_ids: str, num_held_blocks: int = 0) -> None:
    for worker_id in worker_ids:
        plane.worker_joined(make_info(worker_id, role), 0.0)
        plane.snapshot(make_snapshot(worker_id, num_held_blocks=num_held_blocks), 0.0)


def look(plane: ControlPlane, now: float = 1.0) -> dict[str, ScalingDecision]:
    return {decision.pool: decision for decision in plane.scale(1.7e9 + now, now)}


def target(plane: ControlPlane, pool: str = "decode") -> PoolTarget:
    return next(each for each in plane.pool_targets() if each.pool == pool)


def ready(plane: ControlPlane, role: Role) -> list[str]:
    return [worker.info.worker_id for worker in plane.fleet.ready(role)]


def test_a_full_pool_gets_another_worker_and_says_why() -> None:
    plane = make_plane({Role.PREFILL: None, Role.DECODE: make_scaling_policy(targets=DECODE_KV)})
    join(plane, Role.PREFILL, "p")
    join(plane, Role.DECODE, "d", num_held_blocks=100)
    decision = look(plane)["decode"]
    assert (decision.previous, decision.allowed, decision.is_change) == (1, 2, True)
    assert decision.reason == "kv_utilization 1, target 0.5: 2.00 workers"
    assert target(plane).num_places == 2
    assert target(plane, "prefill").num_places == 1
    assert plane.desired_workers == {"prefill": 1, "decode": 2}


def test_pools_scale_each_for_itself_in_opposite_directions() -> None:
    policy = make_scaling_policy(targets=DECODE_KV)
    plane = make_plane({Role.PREFILL: policy, Role.DECODE: policy})
    plane.places_found("prefill", 2, 0.0)
    join(plane, Role.PREFILL, "p0", "p1")
    join(plane, Role.DECODE, "d", num_held_blocks=100)
    look(plane)
    assert (target(plane, "prefill").num_places, target(plane).num_places) == (1, 2)


def test_a_policy_that_only_says_what_it_would_do_changes_no_place() -> None:
    policy = make_scaling_policy(targets=DECODE_KV, is_dry_run=True)
    plane = make_plane({Role.PREFILL: None, Role.DECODE: policy})
    join(plane, Role.DECODE, "d", num_held_blocks=100)
    assert look(plane)["decode"].allowed == 2
    assert plane.desired_workers["decode"] == 2
    assert target(plane).num_places == 1


def test_a_pool_is_looked_at_when_its_time_has_come() -> None:
    plane = make_plane({Role.DECODE: make_scaling_policy(targets=DECODE_KV)})
    join(plane, Role.DECODE, "d")
    assert [bool(look(plane, now)) for now in (0.0, 0.5, 1.0, 1.4, 2.0)] == [
        *(True, False, True, False, True)
    ]


def test_the_budget_binds_both_pools_in_the_ratio_of_their_needs() -> None:
    policy = make_scaling_policy(targets={"kv_utilization": 0.1})
    plane = make_plane({Role.PREFILL: policy, Role.DECODE: policy}, budget=Budget(max_gpus=6))
    join(plane, Role.PREFILL, "p", num_held_blocks=30)
    join(plane, Role.DECODE, "d", num_held_blocks=60)
    decisions = look(plane)
    assert [decisions[name].desired for name in ("prefill", "decode")] == [3, 6]
    assert [decisions[name].allowed for name in ("prefill", "decode")] == [2, 4]
    assert decisions["decode"].reason.startswith("the budget allows 4 of 6")


def test_a_standby_is_warm_gets_nothing_and_takes_work_at_once_when_wanted() -> None:
    policy = make_scaling_policy(targets=DECODE_KV, standby_replicas=1)
    plane = make_plane({Role.PREFILL: None, Role.DECODE: policy})
    join(plane, Role.PREFILL, "p")
    join(plane, Role.DECODE, "d0", "d1")
    look(plane, 0.0)
    assert target(plane).num_places == 2
    assert ready(plane, Role.DECODE) == ["d0"]
    plane.snapshot(make_snapshot("d0", num_held_blocks=100), 1.0)
    decision = look(plane, 1.0)["decode"]
    assert ready(plane, Role.DECODE) == ["d0", "d1"]
    assert target(plane).num_places == 3
    assert (decision.current, decision.standby) == (1, 1)


def test_who_has_least_to_do_leaves_first_and_a_standby_before_all() -> None:
    policy = make_scaling_policy(targets=DECODE_KV, initial_replicas=2, standby_replicas=1)
    plane = make_plane({Role.PREFILL: None, Role.DECODE: policy})
    join(plane, Role.PREFILL, "p")
    join(plane, Role.DECODE, "d0", "d1", "d2")
    plane.place("f", [make_ask("r")], 0.0)
    look(plane, 0.0)
    busy = next(w for w in plane.fleet.workers() if w.num_decoding).info.worker_id
    order = target(plane).leave_first
    assert order[-1] == busy
    assert order[0] not in ready(plane, Role.DECODE)


def test_a_pool_at_none_gets_its_first_worker_when_a_request_waits() -> None:
    rails = make_rails(min_replicas=0, upscale_delay_s=60.0)
    plane = make_plane({Role.PREFILL: None, Role.DECODE: make_scaling_policy(rails)})
    join(plane, Role.PREFILL, "p")
    assert look(plane, 0.0)["decode"].allowed == 1, "nobody knows yet what fits"
    join(plane, Role.DECODE, "d")
    assert look(plane, 1.0)["decode"].allowed == 0
    plane.worker_draining(WorkerId("d"), 1.0)
    plane.worker_left(WorkerId("d"), 1.0)
    assert plane.can_place
    assert plane.limits() is not None
    (answer,) = plane.place("f", [make_ask("r")], 2.0)
    assert type(answer).__name__ == "Queued"
    decision = look(plane, 3.0)["decode"]
    assert decision.allowed == 1
    assert decision.reason == "requests wait"
    join(plane, Role.DECODE, "d2")
    assert [each.request_id for each in plane.take_decisions()] == ["r"]


def test_a_remade_controller_goes_on_from_the_workers_that_live() -> None:
    plane = make_plane({Role.DECODE: make_scaling_policy(targets=DECODE_KV)})
    plane.places_found("decode", 4, 0.0)
    assert target(plane).num_places == 4


def test_after_failed_starts_no_more_workers_are_asked_for() -> None:
    policy = make_scaling_policy(make_rails(cooldown_s=10.0), targets=DECODE_KV)
    plane = make_plane({Role.PREFILL: None, Role.DECODE: policy})
    join(plane, Role.DECODE, "d", num_held_blocks=100)
    plane.places_told("decode", PlaceCounts(num_failures=1), 0.0)
    assert look(plane, 1.0)["decode"].allowed == 1
    assert "cooldown_s" in look(plane, 2.0)["decode"].reason


def test_a_worker_that_has_changed_its_role_counts_where_it_works() -> None:
    policy = make_scaling_policy(targets=DECODE_KV)
    plane = make_plane({Role.PREFILL: policy, Role.DECODE: policy})
    join(plane, Role.PREFILL, "p0", "p1", num_held_blocks=50)
    plane.places_found("prefill", 2, 0.0)
    join(plane, Role.DECODE, "d", num_held_blocks=100)
    plane.fleet.set_role(WorkerId("p1"), Role.DECODE)
    decisions = look(plane)
    # 1.0 + 0.5 of memory in use takes three workers, one of which is lent by the other pool.
    assert decisions["decode"].demand == 3.0
    assert decisions["decode"].allowed == 2
    assert decisions["prefill"].allowed == 2


def test_the_next_worker_goes_where_the_same_work_costs_least() -> None:
    groups = {
        "fast": GroupCost(num_gpus=1.0, cost_per_hour=4.0),
        "slow": GroupCost(num_gpus=1.0, cost_per_hour=1.5),
    }
    plane = make_plane({Role.DECODE: make_scaling_policy(targets=DECODE_KV)}, groups=groups)
    assert target(plane).node_groups == ("fast", "slow")
    times = {"fast": 0.01, "slow": 0.02}
    for group, decode_s in times.items():
        join_on(plane, group, decode_s)
    assert target(plane).node_groups == ("slow", "fast")


def join_on(plane: ControlPlane, group: str, decode_s: float) -> None:
    info = make_info(f"on-{group}", Role.DECODE, node_group=group)
    step_time = StepTime(
        base_s=0.0, prefill_token_s=0.0, prefill_pair_s=0.0, decode_s=decode_s, context_token_s=0.0
    )
    plane.worker_joined(replace(info, pool="decode"), 0.0)
    plane.snapshot(make_snapshot(f"on-{group}", step_time=step_time), 0.0)


def test_what_was_decided_is_decided_again_when_told_again() -> None:
    def run() -> Sequence[ScalingDecision]:
        plane = make_plane({Role.PREFILL: None, Role.DECODE: make_scaling_policy()})
        join(plane, Role.PREFILL, "p")
        join(plane, Role.DECODE, "d", num_held_blocks=90)
        return [each for now in range(5) for each in plane.scale(1e9 + now, float(now))]

    assert run() == run()
