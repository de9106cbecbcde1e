"""The checks that span several keys of a config. Each yields what is wrong, none raises."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pdray.config_report import Problem, choice
from pdray.core.mode import Mode
from pdray.core.snapshot import Role
from pdray.engine.attention import ATTENTION
from pdray.policy.placement import PLACEMENT
from pdray.policy.signals import DEFAULT_TARGETS
from pdray.scaling_config import policy_problems
from pdray.transfer import TRANSPORTS

if TYPE_CHECKING:
    from pdray.config import EngineSettings, NodeGroupConfig, PdrayConfig, PoolConfig, ServeConfig


def problems_of(config: PdrayConfig) -> list[Problem]:
    """Everything that cannot be; empty where the config is good."""
    return [
        *_names(config),
        *_node_groups(config),
        *(_phases(config) if config.mode is Mode.SERVICE else _roles(config)),
        *_role_bounds(config),
        *_scaling(config),
        *_budgets(config),
        *_ingress(config),
        *_engines(config),
        *_tiers(config),
        *_tenants(config),
    ]


def _names(config: PdrayConfig) -> Iterator[Problem]:
    if wrong := choice(config.transfer.transport, TRANSPORTS):
        yield Problem(key="transfer.transport", value=config.transfer.transport, accepted=wrong)
    placement = config.controller.placement
    if wrong := choice(placement, PLACEMENT):
        yield Problem(key="controller.placement", value=placement, accepted=wrong)
    elif placement != "cost" and config.mode is Mode.AUTO:
        accepted = "cost: in mode auto its forecasts choose between one worker and two"
        yield Problem(key="controller.placement", value=placement, accepted=accepted)
    elif placement != "cost" and config.controller.early_refusal:
        accepted = "cost, or no early_refusal: the other policies do not foretell anything"
        yield Problem(key="controller.placement", value=placement, accepted=accepted)


def _node_groups(config: PdrayConfig) -> Iterator[Problem]:
    for name, pool in config.pools.items():
        for group in pool.node_groups:
            if wrong := choice(group, config.node_groups):
                yield Problem(key=f"pools.{name}.node_groups", value=group, accepted=wrong)
        if len(set(pool.node_groups)) < len(pool.node_groups):
            yield Problem(
                key=f"pools.{name}.node_groups",
                value=list(pool.node_groups),
                accepted="should name each group once",
            )


def _roles(config: PdrayConfig) -> Iterator[Problem]:
    for key, value in (
        ("handles.secret_file", config.handles.secret_file),
        ("serve.prefill_url", config.serve.prefill_url),
    ):
        if value is not None:
            yield Problem(key=key, value=value, accepted="leave it out, but in mode service")
    roles = {name: Role.parse(pool.role) for name, pool in config.pools.items()}
    if config.mode in (Mode.SOFT, Mode.AUTO):
        for name, role in roles.items():
            if role is not Role.MIXED:
                yield Problem(
                    key=f"pools.{name}.role",
                    value=config.pools[name].role,
                    accepted=f"mixed: in mode {config.mode} every worker does both phases",
                )
        return
    for need in (Role.PREFILL, Role.DECODE):
        if not any(need in role for role in roles.values()):
            word = str(need.name).lower()
            yield Problem(
                key="pools",
                value={name: pool.role for name, pool in config.pools.items()},
                accepted=f"mode pooled needs a pool with role {word} or mixed",
            )


def _role_bounds(config: PdrayConfig) -> Iterator[Problem]:
    if config.roles is None:
        return
    if config.mode is not Mode.POOLED:
        accepted = f"leave it out in mode {config.mode}: no worker has one role alone to change"
        yield Problem(key="roles", value=config.roles.model_dump(), accepted=accepted)
        return
    for name in ("prefill", "decode"):
        bounds = getattr(config.roles, name)
        num = sum(pool.first_replicas for pool in config.pools.values() if pool.role == name)
        if not bounds.min <= num <= bounds.max:
            yield Problem(
                key=f"roles.{name}",
                value=bounds.model_dump(),
                accepted=f"min and max should have the {num} replicas of pools with role {name} "
                "between them",
            )


def _scaling(config: PdrayConfig) -> Iterator[Problem]:
    for name, pool in config.pools.items():
        policy = pool.autoscaling
        if policy is None:
            continue
        key = f"pools.{name}.autoscaling"
        yield from policy_problems(policy, f"{key}.")
        if pool.replicas is not None and not policy.dry_run:
            accepted = "leave it out, as the pool's autoscaling says how many there are"
            yield Problem(key=f"pools.{name}.replicas", value=pool.replicas, accepted=accepted)
        own = DEFAULT_TARGETS[Role.parse(pool.role)]
        others = {signal for targets in DEFAULT_TARGETS.values() for signal in targets} - own.keys()
        for signal in (policy.signals or {}).keys() & (others - {"batch_size"}):
            accepted = f"signals of a pool with role {pool.role}: {', '.join(sorted(own))}"
            yield Problem(key=f"{key}.signals", value=signal, accepted=accepted)


def _budgets(config: PdrayConfig) -> Iterator[Problem]:
    """What must be has to fit; what costs nothing cannot be limited."""
    used = {name: group for pool in config.pools.values() for name, group in _groups(config, pool)}
    if config.max_cost_per_hour is not None:
        for name, group in used.items():
            if group.cost_per_hour is None:
                yield Problem(
                    key=f"node_groups.{name}.cost_per_hour",
                    value=None,
                    accepted="should be set, as max_cost_per_hour is",
                )
    minima = [
        (group, pool.autoscaling.min_replicas if pool.autoscaling else pool.first_replicas)
        for pool in config.pools.values()
        for _, group in _groups(config, pool)[:1]
    ]
    num_gpus = sum(num * group.resources_per_worker.get("GPU", 0.0) for group, num in minima)
    cost = sum(num * (group.cost_per_hour or 0.0) for group, num in minima)
    for key, least in (("max_gpu_budget", num_gpus), ("max_cost_per_hour", cost)):
        limit = getattr(config, key)
        if limit is not None and limit < least:
            accepted = f"should be at least {least:g}, which all pools' minima take"
            yield Problem(key=key, value=limit, accepted=accepted)


def _ingress(config: PdrayConfig) -> Iterator[Problem]:
    least, most = config.serve.ingress_replicas, config.serve.max_ingress_replicas
    if most is not None and most < least:
        accepted = f"should be at least serve.ingress_replicas, {least}"
        yield Problem(key="serve.max_ingress_replicas", value=most, accepted=accepted)


def _groups(config: PdrayConfig, pool: PoolConfig) -> list[tuple[str, NodeGroupConfig]]:
    names = [name for name in pool.node_groups if name in config.node_groups]
    return [(name, config.node_groups[name]) for name in names]


def _phases(config: PdrayConfig) -> Iterator[Problem]:
    """Of an application that has one of the phases alone."""
    if config.phases not in (Role.PREFILL, Role.DECODE):
        yield Problem(
            key="pools",
            value={name: pool.role for name, pool in config.pools.items()},
            accepted="mode service needs pools of one role, prefill or decode: the other phase is "
            "an application of its own",
        )
    if config.handles.secret_file is None:
        yield Problem(
            key="handles.secret_file",
            value=None,
            accepted="mode service needs a file with a secret that both applications have: "
            "openssl rand -hex 32 > FILE",
        )
    if config.serve.prefill_url is not None and config.phases is Role.PREFILL:
        yield Problem(
            key="serve.prefill_url",
            value=config.serve.prefill_url,
            accepted="leave it out here: it tells a decode application where this one is",
        )


def _pairs(config: PdrayConfig) -> Iterator[tuple[str, str, EngineSettings]]:
    for name, pool in config.pools.items():
        for group in pool.node_groups:
            if group in config.node_groups:
                yield name, group, config.engine_settings(name, group)


def _tiers(config: PdrayConfig) -> Iterator[Problem]:
    for name, group, engine in _pairs(config):
        tiers = config.pools[name].tiers
        if tiers is None:
            continue
        key = f"pools.{name}.tiers"
        disk = (tiers.disk_bytes, tiers.disk_path)
        if (disk[0] is None) != (disk[1] is None):
            accepted = "set both or neither"
            yield Problem(key=f"{key}.disk_bytes, {key}.disk_path", value=disk, accepted=accepted)
        if engine.tensor_parallel > 1:
            yield Problem(
                key=f"pools.{name}.engine.tensor_parallel",
                value=engine.tensor_parallel,
                accepted=f"1 (on node group {group}): tiers hold the blocks of one rank",
            )


def _engines(config: PdrayConfig) -> Iterator[Problem]:
    for pool, group, engine in _pairs(config):
        key = f"pools.{pool}.engine"
        on = f" (on node group {group})"
        sizes = (engine.kv_cache_bytes, engine.kv_memory_fraction)
        if (sizes[0] is None) == (sizes[1] is None):
            yield Problem(
                key=f"{key}.kv_cache_bytes, {key}.kv_memory_fraction",
                value=sizes,
                accepted=f"set exactly one of the two{on}",
            )
        if wrong := choice(engine.attention_backend, ATTENTION):
            yield Problem(
                key=f"{key}.attention_backend", value=engine.attention_backend, accepted=wrong
            )
        if engine.max_tokens_per_step < engine.block_size:
            yield Problem(
                key=f"{key}.max_tokens_per_step",
                value=engine.max_tokens_per_step,
                accepted=f"should be at least block_size, {engine.block_size}{on}",
            )
        if engine.tensor_parallel > 1 and config.transfer.transport == "loopback":
            yield Problem(
                key="transfer.transport",
                value="loopback",
                accepted=f"nixl, as the ranks of pool {pool} are processes{on}",
            )
        if engine.device not in ("cpu", "cuda") and engine.tensor_parallel > 1:
            yield Problem(
                key=f"{key}.device",
                value=engine.device,
                accepted=f"cpu or cuda with tensor_parallel: rank i takes the i-th device{on}",
            )
        resources = config.node_groups[group].resources_per_worker
        num_gpus = resources.get("GPU", 0)
        # One rank may do with a part of a GPU; of several each takes its own.
        is_short = num_gpus < engine.tensor_parallel if engine.tensor_parallel > 1 else not num_gpus
        if engine.device != "cpu" and is_short:
            yield Problem(
                key=f"node_groups.{group}.resources_per_worker",
                value=resources,
                accepted=f"should have GPU: {engine.tensor_parallel}, as pool {pool} asks for "
                f"device {engine.device} and tensor_parallel {engine.tensor_parallel}",
            )


def _tenants(config: PdrayConfig) -> Iterator[Problem]:
    serve = config.serve
    if serve.keys_file is not None and serve.allow_anonymous:
        yield Problem(
            key="serve.allow_anonymous",
            value=True,
            accepted="leave it out, as serve.keys_file says who may come",
        )
    if (problem := open_to_all(serve, serve.host)) is not None:
        yield problem


def open_to_all(serve: ServeConfig, host: str) -> Problem | None:
    """Why nobody may listen on ``host`` with these settings; None where one may."""
    if serve.keys_file is not None or serve.allow_anonymous or is_loopback(host):
        return None
    return Problem(
        key="serve.host",
        value=host,
        accepted="127.0.0.1 or another loopback address, as long as no API key is asked for; to "
        "listen elsewhere set serve.keys_file, or serve.allow_anonymous: true to let everybody in",
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
