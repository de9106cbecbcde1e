"""The control plane that a config asks for: the same for Ray and for one process."""

from __future__ import annotations

import random
import time
from pathlib import Path

from pdray.config import PdrayConfig
from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.event_log.recorder import Recorder
from pdray.policy.placement import PLACEMENT
from pdray.policy.roles import RoleBounds
from pdray.policy.scaling.base import Budget, GroupCost, PoolSetup, ScalingSetup


def make_control_plane(config: PdrayConfig) -> ControlPlane:
    """Equal configs make control planes that, told the same, decide the same."""
    slo = Slo(**config.slo.model_dump())
    rng = random.Random(config.generation)
    return ControlPlane(
        control_config(config), PLACEMENT.get(config.controller.placement)(slo, rng)
    )


def control_config(config: PdrayConfig) -> ControlConfig:
    """What a control plane has to know of a config: a simulated one as well."""
    settings = config.controller
    slo = Slo(**config.slo.model_dump())
    return ControlConfig(
        max_queued_requests=settings.max_queued_requests,
        queue_timeout_s=settings.queue_timeout_s,
        phases=config.phases,
        mode=config.mode,
        refuse_after_s=slo.ttft_s if settings.early_refusal else None,
        role_bounds=_role_bounds(config),
        slo=slo,
        scaling=_scaling(config, slo),
    )


def start_recording(config: PdrayConfig, control: ControlPlane) -> Recorder | None:
    """The event log, where the config asks for one. Whoever closes it gets all of it written."""
    log = config.controller.event_log
    if log is None:
        return None
    return Recorder(
        control,
        Path(log.folder).expanduser(),
        config.serve.application,
        life=f"{config.generation}-{time.time_ns()}",
        max_bytes=log.max_bytes,
        unix_time=time.time,
    )


def _role_bounds(config: PdrayConfig) -> dict[Role, RoleBounds] | None:
    if config.roles is None:
        return None
    bounds = {Role.PREFILL: config.roles.prefill, Role.DECODE: config.roles.decode}
    return {
        role: RoleBounds(min_workers=each.min, max_workers=each.max)
        for role, each in bounds.items()
    }


def _scaling(config: PdrayConfig, slo: Slo) -> ScalingSetup:
    pools = []
    for name, pool in config.pools.items():
        role = Role.parse(pool.role)
        policy = None if pool.autoscaling is None else pool.autoscaling.policy(role, slo)
        pools.append(
            PoolSetup(
                name=name,
                role=role,
                node_groups=pool.node_groups,
                replicas=pool.first_replicas,
                policy=policy,
            )
        )
    groups = {
        name: GroupCost(
            num_gpus=group.resources_per_worker.get("GPU", 0.0), cost_per_hour=group.cost_per_hour
        )
        for name, group in config.node_groups.items()
    }
    budget = Budget(max_gpus=config.max_gpu_budget, max_cost_per_hour=config.max_cost_per_hour)
    return ScalingSetup(pools=tuple(pools), groups=groups, budget=budget)
