"""What scaling policies would have done on a workload: the scenario of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdray.control.controller import ControlConfig
from pdray.core.errors import ConfigError
from pdray.core.mode import Mode
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.policy.scaling.base import (
    Budget,
    GroupCost,
    PoolSetup,
    ScalingPolicy,
    ScalingSetup,
)
from pdray.workload.request import WorkloadRequest

from .profile import Profile, WorkerProfile
from .scenario import GroupPlan, PoolPlan, Scenario

MONDAY = 4 * 86400.0
"""The midnight, UTC, at which it begins, for policies with a schedule: of 5 January 1970."""
_MAX_QUEUED = 256
_QUEUE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUnderPolicy:
    """``policy`` None: it keeps ``num_workers``; else it begins with what the policy says."""

    name: str
    role: Role
    node_groups: tuple[str, ...]
    policy: ScalingPolicy | None
    num_workers: int = 1


def pools_of(profile: Profile) -> dict[str, tuple[Role, tuple[str, ...]]]:
    """Each pool of the profile with the role that its name says, and its node groups. Raises
    ConfigError for one whose name says none."""
    groups: dict[str, list[str]] = {}
    for worker in profile.workers:
        groups.setdefault(worker.pool, []).append(worker.node_group)
    return {name: (_role_named(name), tuple(found)) for name, found in groups.items()}


def control_of(
    pools: Iterable[PoolUnderPolicy], profile: Profile, slo: Slo, budget: Budget | None = None
) -> ControlConfig:
    """Of a control plane that has nothing but what policies need; soft where all pools do both
    phases. Raises ConfigError."""
    setups = tuple(
        PoolSetup(
            name=pool.name,
            role=pool.role,
            node_groups=pool.node_groups,
            replicas=pool.num_workers,
            policy=pool.policy,
        )
        for pool in pools
    )
    workers = [profile.worker(pool.name, name) for pool in setups for name in pool.node_groups]
    return ControlConfig(
        max_queued_requests=_MAX_QUEUED,
        queue_timeout_s=_QUEUE_TIMEOUT_S,
        mode=Mode.SOFT if all(each.role is Role.MIXED for each in setups) else Mode.POOLED,
        slo=slo,
        scaling=ScalingSetup(
            pools=setups,
            groups={worker.node_group: _cost_of(worker) for worker in workers},
            budget=budget or Budget(),
        ),
    )


def replay_scenario(
    profile: Profile,
    control: ControlConfig,
    requests: Iterable[WorkloadRequest],
    *,
    placement: str = "cost",
    seed: int = 0,
    duration_s: float = 0.0,
    every_s: float = 1.0,
) -> Scenario:
    """Of a control plane that scales, with an SLO. Workers tell of themselves, and are scaled,
    ``every_s``: the shipped ones do so four times a second and twice, but most of a long day would
    be that."""
    assert control.scaling is not None, "nobody decides how many workers there are"
    assert control.slo is not None, "nothing is promised"
    return Scenario(
        profile=profile,
        pools=tuple(_plan(setup) for setup in control.scaling.pools),
        requests=requests,
        slo=control.slo,
        control=control,
        placement=placement,
        seed=seed,
        scaler_every_s=every_s,
        snapshot_s=every_s,
        tick_s=every_s,
        duration_s=duration_s,
        unix_time=MONDAY,
    )


def _plan(setup: PoolSetup) -> PoolPlan:
    policy = setup.policy
    num_workers = setup.replicas
    if policy is not None and not policy.is_dry_run:
        num_workers = policy.initial_replicas + policy.standby_replicas
    return PoolPlan(
        name=setup.name,
        role=setup.role,
        groups=tuple(GroupPlan(node_group=name) for name in setup.node_groups),
        num_workers=num_workers,
    )


def _role_named(pool: str) -> Role:
    roles = {"prefill": Role.PREFILL, "decode": Role.DECODE, "mixed": Role.MIXED}
    if pool not in roles:
        raise ConfigError(
            f"the profile's pool {pool!r} does not say its role; accepted for a policy alone: "
            f"pools named {', '.join(roles)}; else a cluster's config, which says it"
        )
    return roles[pool]


def _cost_of(worker: WorkerProfile) -> GroupCost:
    return GroupCost(num_gpus=worker.gpus, cost_per_hour=worker.cost_per_hour)
