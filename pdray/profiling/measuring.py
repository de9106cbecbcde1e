"""The profile of a config's workers on this machine: each pool's engine, and reads between them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pdray.config import PdrayConfig
from pdray.core.errors import ConfigError
from pdray.core.snapshot import Role
from pdray.doctor.local_plan import PoolHere, plan_of
from pdray.engine.config import EngineConfig
from pdray.simulation.profile import LinkProfile, Profile, WorkerProfile

from .engine_probe import EngineFacts, probe_engine, probe_startup
from .link_probe import probe_link

Say = Callable[[str], None]
_LINK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """``seconds`` of steps for each engine, and ``num_startups`` of each."""

    seconds: float
    num_startups: int


@dataclass(frozen=True, slots=True)
class _Measured:
    pool: PoolHere
    config: EngineConfig
    facts: EngineFacts
    startup_s: tuple[float, ...]


def measure_profile(
    config: PdrayConfig, node_group: str | None, model_path: Path, effort: Effort, say: Say
) -> Profile:
    """Of all pools as if they ran here, each on its first node group; or of those of
    ``node_group``. What is alike is measured once. Raises PdrayError."""
    known: dict[EngineConfig, tuple[EngineFacts, tuple[float, ...]]] = {}
    found: list[_Measured] = []
    for pool in plan_of(config, node_group).pools:
        engine = config.engine_config(pool.name, pool.node_group, model_path)
        if engine not in known:
            known[engine] = _measure_engine(pool, engine, model_path, effort, say)
        found.append(_Measured(pool, engine, *known[engine]))
    return Profile(
        model=config.model_name,
        measured_on=f"{platform.node()}, {platform.processor() or platform.machine()}",
        workers=tuple(_worker_profile(config, each) for each in found),
        links=tuple(_measure_links(config, found, say)),
    )


def merge(known: Profile, new: Profile) -> Profile:
    """What machines of other node groups have measured stays. Raises ConfigError for another
    model's."""
    if known.model != new.model:
        raise ConfigError(
            f"the profile that is there is of model {known.model!r}, and this is {new.model!r}; "
            "accepted: another --output"
        )
    workers = {(each.pool, each.node_group): each for each in (*known.workers, *new.workers)}
    links = {(each.source, each.target): each for each in (*known.links, *new.links)}
    return Profile(
        model=new.model,
        measured_on="; ".join(dict.fromkeys([*known.measured_on.split("; "), new.measured_on])),
        workers=tuple(workers.values()),
        links=tuple(links.values()),
    )


def _measure_engine(
    pool: PoolHere, config: EngineConfig, model_path: Path, effort: Effort, say: Say
) -> tuple[EngineFacts, tuple[float, ...]]:
    say(f"pool {pool.name} on {pool.node_group}: loads, then {effort.seconds:g} s of steps")
    first_s, facts = probe_engine(model_path, config, seconds=effort.seconds, seed=0)
    say(f"pool {pool.name}: started in {first_s:.1f} s, {facts.steps.num_steps} steps timed")
    others = [probe_startup(model_path, config) for _ in range(effort.num_startups - 1)]
    return facts, (first_s, *others)


def _measure_links(
    config: PdrayConfig, found: Iterable[_Measured], say: Say
) -> Iterable[LinkProfile]:
    """From those that compute prompts to those that decode, between their node groups."""
    transport = config.transfer.transport
    if transport != "nixl":
        say(f"transfer.transport: {transport} works within one process only: no reads are timed")
        return
    links: dict[tuple[str, str], LinkProfile] = {}
    for source in found:
        for target in found:
            pair = source.pool.node_group, target.pool.node_group
            if pair in links or not _may_read(source.pool, target.pool):
                continue
            say(f"reads of {pair[1]} from {pair[0]}")
            cost = probe_link(
                source.config.device, target.config.device, source.facts.block_bytes, _LINK_S
            )
            links[pair] = LinkProfile(
                source=pair[0],
                target=pair[1],
                latency_s=cost.latency_s,
                bytes_per_s=cost.bytes_per_s,
            )
    yield from links.values()


def _may_read(source: PoolHere, target: PoolHere) -> bool:
    return Role.PREFILL in Role.parse(source.role) and Role.DECODE in Role.parse(target.role)


def _worker_profile(config: PdrayConfig, measured: _Measured) -> WorkerProfile:
    """A worker without a GPU counts as one."""
    pool, engine, facts = measured.pool, measured.config, measured.facts
    return WorkerProfile(
        pool=pool.name,
        node_group=pool.node_group,
        step_time=facts.steps.step_time,
        high_ratio=facts.steps.high_ratio,
        block_size=engine.block_size,
        num_blocks=facts.num_blocks,
        max_batch_size=engine.max_batch_size,
        max_tokens_per_step=engine.max_tokens_per_step,
        max_model_len=engine.max_model_len,
        max_sequence_tokens=facts.max_sequence_tokens,
        kv_spans=facts.kv_spans,
        dtype=engine.dtype,
        layout_digest=facts.layout_digest,
        model_digest=facts.model_digest,
        startup_s=measured.startup_s,
        gpus=pool.num_gpus or 1.0,
        cost_per_hour=config.node_groups[pool.node_group].cost_per_hour or 0.0,
    )
