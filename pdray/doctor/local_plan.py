"""What of a config would run on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pdray.config import EngineSettings, PdrayConfig
from pdray.config_report import choice
from pdray.core.errors import ConfigError
from pdray.doctor.visible_gpus import num_gpus
from pdray.kvcache.tiers.base import TierConfig
from pdray.model_source import find_model


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHere:
    """``num_workers`` of a pool, on one of its node groups; ``num_gpus`` is what each takes."""

    name: str
    role: str
    node_group: str
    num_workers: int
    num_gpus: float
    engine: EngineSettings
    tiers: TierConfig | None

    @property
    def uses_gpu(self) -> bool:
        return self.engine.device != "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """``model_path`` is None where the model has to be made or got first, or where
    ``model_problem`` says why there is none."""

    config: PdrayConfig
    node_group: str | None
    pools: tuple[PoolHere, ...]
    model_path: Path | None
    model_problem: str | None

    @property
    def uses_gpu(self) -> bool:
        return any(pool.uses_gpu for pool in self.pools)

    @property
    def text(self) -> str:
        if self.node_group is None:
            return "as if all workers ran here, each on its pool's first node group"
        return f"as one machine of node group {self.node_group}"


def plan_of(config: PdrayConfig, node_group: str | None) -> LocalPlan:
    """All workers, as `pdray serve` without a cluster starts them; or, as a machine of
    ``node_group`` in a cluster, what there is room for. Raises ConfigError for an unknown group."""
    path, problem = None, None
    try:
        path = find_model(config.model)
    except ConfigError as error:
        problem = str(error)
    return LocalPlan(
        config=config,
        node_group=node_group,
        pools=_all_pools(config) if node_group is None else _pools_on(config, node_group),
        model_path=path,
        model_problem=problem,
    )


def _all_pools(config: PdrayConfig) -> tuple[PoolHere, ...]:
    return tuple(
        _pool_here(config, name, pool.node_groups[0], pool.max_replicas)
        for name, pool in config.pools.items()
    )


def _pools_on(config: PdrayConfig, node_group: str) -> tuple[PoolHere, ...]:
    """Those that prefer this group, or where none does, those that may come to it."""
    if wrong := choice(node_group, config.node_groups):
        raise ConfigError(f"--node-group = {node_group!r}: {wrong}")
    first = [name for name, pool in config.pools.items() if pool.node_groups[0] == node_group]
    names = first or [name for name, pool in config.pools.items() if node_group in pool.node_groups]
    if not names:
        raise ConfigError(f"--node-group = {node_group!r}: no pool names it; accepted: one in use")
    resources = config.node_groups[node_group].resources_per_worker
    free = {"CPU": float(os.cpu_count() or 1)}
    if "GPU" in resources:
        free["GPU"] = float(num_gpus())
    pools = []
    for name in names:
        room = [int(free[key] // amount) for key, amount in resources.items() if key in free]
        # One at least: what a worker would lack here is to be found.
        num_workers = max(1, min([config.pools[name].max_replicas, *room]))
        for key, amount in resources.items():
            if key in free:
                free[key] = max(0.0, free[key] - num_workers * amount)
        pools.append(_pool_here(config, name, node_group, num_workers))
    return tuple(pools)


def _pool_here(config: PdrayConfig, name: str, node_group: str, num_workers: int) -> PoolHere:
    return PoolHere(
        name=name,
        role=config.pools[name].role,
        node_group=node_group,
        num_workers=num_workers,
        num_gpus=config.node_groups[node_group].resources_per_worker.get("GPU", 0.0),
        engine=config.engine_settings(name, node_group),
        tiers=config.tier_config(name),
    )
