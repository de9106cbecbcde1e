"""What a worker can do, as it was measured: the file that `pdray profile` writes, for the simulator
to read. Knows no file: it is plain data that comes and goes."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import msgspec

from pdray.core.errors import ConfigError
from pdray.core.link_cost import LinkCost
from pdray.core.snapshot import KVSpan
from pdray.core.step_time import StepTime, StepWork

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class WorkerProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of every worker of a pool on a node group. ``high_ratio``: nearly all steps take at most so
    many times what ``step_time`` says. ``startup_s``: from the decision to start one until it takes
    work, as often as that was measured. ``gpus`` and ``cost_per_hour`` are one worker's."""

    pool: Name
    node_group: Name
    step_time: StepTime
    high_ratio: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    block_size: Annotated[int, msgspec.Meta(ge=16, multiple_of=16)]
    num_blocks: Count
    max_batch_size: Count
    max_tokens_per_step: Count
    max_model_len: Count
    max_sequence_tokens: Count
    kv_spans: Annotated[tuple[KVSpan, ...], msgspec.Meta(min_length=1)]
    dtype: Name
    layout_digest: Name
    model_digest: Name
    startup_s: Annotated[tuple[NotNegative, ...], msgspec.Meta(min_length=1)]
    gpus: NotNegative = 1.0
    cost_per_hour: NotNegative = 0.0


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it takes a worker on ``target`` to read KV of one on ``source``, both node groups."""

    source: Name
    target: Name
    latency_s: NotNegative
    bytes_per_s: Positive

    def cost(self, num_reads: int) -> LinkCost:
        return LinkCost(
            source=self.source,
            latency_s=self.latency_s,
            bytes_per_s=self.bytes_per_s,
            num_reads=num_reads,
        )


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``measured_on`` says in words where it is from."""

    model: Name
    measured_on: str = ""
    workers: Annotated[tuple[WorkerProfile, ...], msgspec.Meta(min_length=1)]
    links: tuple[LinkProfile, ...] = ()

    def worker(self, pool: str, node_group: str) -> WorkerProfile:
        """Raises ConfigError."""
        for worker in self.workers:
            if (worker.pool, worker.node_group) == (pool, node_group):
                return worker
        known = ", ".join(f"{each.pool} on {each.node_group}" for each in self.workers)
        raise ConfigError(f"the profile has no pool {pool!r} on {node_group!r}; it has {known}")

    def link(self, source: str, target: str) -> LinkProfile:
        """Raises ConfigError."""
        for link in self.links:
            if (link.source, link.target) == (source, target):
                return link
        known = ", ".join(f"{each.source} to {each.target}" for each in self.links) or "none"
        raise ConfigError(
            f"the profile has no link from node group {source!r} to {target!r}; it has {known}"
        )


def parse_profile(data: object, source: str) -> Profile:
    """``data`` as YAML or JSON gives it, ``source`` its name in errors. Raises ConfigError."""
    try:
        profile = msgspec.convert(data, Profile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from error
    pairs = Counter(("workers", each.pool, each.node_group) for each in profile.workers)
    pairs += Counter(("links", each.source, each.target) for each in profile.links)
    twice = [f"{where}: {one}, {other}" for (where, one, other), num in pairs.items() if num > 1]
    if twice:
        raise ConfigError(f"{source}: stands there twice: {'; '.join(twice)}")
    for worker in profile.workers:
        steps = worker.step_time
        if not steps.step_s(StepWork(num_decodes=1, num_context_tokens=1)) > 0:
            where = f"{worker.pool} on {worker.node_group}"
            raise ConfigError(f"{source}: step_time of {where}: {steps}; a decode takes some time")
    return profile


def profile_data(profile: Profile) -> dict[str, object]:
    """What ``parse_profile`` takes, of plain lists, dicts and numbers."""
    data: dict[str, object] = msgspec.to_builtins(profile)
    return data
