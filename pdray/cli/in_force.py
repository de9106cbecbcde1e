"""What a config means, in the lines that ``pdray serve`` begins with."""

from __future__ import annotations

from collections.abc import Iterator

from pdray.config import PdrayConfig, PoolConfig
from pdray.core.mode import Mode

_MEETINGS = {
    Mode.SOFT: "every worker computes prompts and decodes them, decodes first",
    Mode.POOLED: "prompts and decodes on workers of their own, short prompts where they decode",
    Mode.AUTO: "for each request one worker or two, whatever costs less",
    Mode.SERVICE: "one phase here, the other in another application",
}
_ALWAYS_APART = "prompts and decodes on workers of their own"


def lines_of(config: PdrayConfig) -> Iterator[str]:
    """Mode, placement and transport; then each pool with its workers and node groups."""
    meeting = _MEETINGS[config.mode]
    if config.mode is Mode.POOLED and config.controller.placement != "cost":
        meeting = _ALWAYS_APART
    yield f"{config.serve.application}: mode {config.mode} ({meeting})"
    moves = "" if config.mode is Mode.SOFT else f", KV moves through {config.transfer.transport}"
    yield f"  placement {config.controller.placement}{moves}"
    for name, pool in config.pools.items():
        workers = _workers(pool)
        groups = ", else ".join(_node_group(config, group) for group in pool.node_groups)
        yield f"  pool {name}: {workers}, role {pool.role}, on {groups}"


def _workers(pool: PoolConfig) -> str:
    policy = pool.autoscaling
    if policy is None or policy.dry_run:
        told = "" if policy is None else ", its autoscaling only says what it would do"
        return ("1 worker" if pool.first_replicas == 1 else f"{pool.first_replicas} workers") + told
    warm = f", {policy.standby_replicas} more warm" if policy.standby_replicas else ""
    first = f"first {policy.first_replicas}"
    return f"{policy.min_replicas} to {policy.max_replicas} workers, {first}{warm}"


def _node_group(config: PdrayConfig, name: str) -> str:
    group = config.node_groups[name]
    takes = group.resources_per_worker | ({group.resource: 1} if group.resource else {})
    return f"{name} ({', '.join(f'{key} {amount:g}' for key, amount in takes.items())})"
