"""Frozen numbers of workers, and the view of a fleet that policies read."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pdray.core.link_cost import LinkCost
from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk, WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.startup import StartupTimes
from pdray.core.step_time import StepTime


class Role(enum.Flag):
    """What a worker admits: a mask, as every worker can do both."""

    PREFILL = enum.auto()
    DECODE = enum.auto()
    MIXED = PREFILL | DECODE

    @classmethod
    def parse(cls, name: str) -> Role:
        """``prefill``, ``decode`` or ``mixed``; raises KeyError for anything else."""
        return cls[name.upper()]


class WorkerState(enum.StrEnum):
    """STARTING -> READY -> DRAINING -> STOPPED, and from any of them -> FAILED."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpan:
    """Layers that keep KV of the same tokens, the last ``window_tokens`` or, with None, all: what
    a read of it moves, on each rank."""

    bytes_per_token: int
    window_tokens: int | None

    def num_bytes(self, num_tokens: int) -> int:
        kept = num_tokens if self.window_tokens is None else min(num_tokens, self.window_tokens)
        return kept * self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """What does not change in a worker's life."""

    worker_id: WorkerId
    pool: str
    node_group: str
    role: Role
    address: WorkerAddress
    dtype: str
    layout_digest: str
    """Equal where one worker's KV blocks can be made of the other's."""
    layout_text: str
    model_digest: str
    block_size: int
    num_blocks: int
    max_batch_size: int
    max_tokens_per_step: int
    max_model_len: int
    max_sequence_tokens: int
    """Prompt and output tokens of the longest sequence that its empty KV memory could hold,
    never more than ``max_model_len``."""
    kv_spans: tuple[KVSpan, ...]
    startup: StartupTimes | None = None
    """None where nobody has measured it."""

    def kv_bytes(self, num_tokens: int) -> int:
        """What has to be read, on each rank, of a sequence of so many tokens."""
        num_bytes = 0
        for span in self.kv_spans:
            num_bytes += span.num_bytes(num_tokens)
        return num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesRead:
    """KV bytes that a worker has read of a pool's workers so far."""

    source_pool: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSnapshot:
    """A worker's numbers at one moment of its own clock. No defaults: a producer that forgets
    a field is found by mypy."""

    worker_id: WorkerId
    state: WorkerState
    taken_at: float
    num_waiting: int
    num_running: int
    prefill_backlog_tokens: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_held_blocks: int
    num_quarantined_blocks: int
    num_unaccounted_blocks: int
    """Of those, how many no sequence, lease or read knows of: more than 0 is a leak."""
    prefix_query_tokens: int
    """Tokens of all prompts that were looked up in the prefix cache so far."""
    prefix_hit_tokens: int
    """Those of them whose KV was there."""
    num_evicted_blocks: int
    """Cached blocks that others have got, so far."""
    step_time: StepTime | None
    """As fitted so far; None before it is known."""
    reads: tuple[LinkCost, ...]
    """What its reads of peers have cost, by the peers' node group."""
    bytes_read: tuple[BytesRead, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSnapshot:
    """KV blocks that a worker keeps in one tier below its device, and those that were moved
    there, moved up from there, or could not be, so far."""

    tier: str
    num_blocks: int
    num_bytes: int
    num_demoted: int
    num_promoted: int
    num_failed: int


class WorkerView(Protocol):
    """What a policy may read of one worker: it never changes anything here."""

    @property
    def info(self) -> WorkerInfo: ...

    @property
    def snapshot(self) -> WorkerSnapshot | None:
        """The newest one; None until the first."""

    @property
    def is_ready(self) -> bool:
        """Takes new work."""

    @property
    def prefill_backlog_tokens(self) -> int:
        """Prompt tokens still to compute: the snapshot's, and those placed since it."""

    @property
    def num_decoding(self) -> int:
        """Requests in flight whose first decode candidate is this worker."""

    @property
    def num_decoding_tokens(self) -> int:
        """Prompt tokens of those requests."""

    @property
    def step_time(self) -> StepTime | None:
        """As fitted by the worker; None until it knows."""

    @property
    def kv_utilization(self) -> float:
        """Used blocks / all blocks, 0..1, by the newest snapshot."""

    @property
    def fullness(self) -> float:
        """Of its batch and its KV memory, how full the fuller one is: more than 1 where more are on
        their way than fit in a batch."""


class FleetView(Protocol):
    """What a policy may read of all workers: valid until the next event."""

    @property
    def mode(self) -> Mode: ...

    @property
    def phases(self) -> Role:
        """What requests are placed for: MIXED, or one of the phases where the other is another
        application's."""

    def get(self, worker_id: WorkerId) -> WorkerView | None:
        """A living worker, ready or not."""

    def ready(self, role: Role) -> Sequence[WorkerView]:
        """Workers that take new work of every role in the mask, oldest first."""

    def by_load(self, role: Role) -> Iterator[WorkerView]:
        """Workers that take new work of this phase, as far as they are asked for. PREFILL: those
        with the fewest prompt tokens to compute first, then as for DECODE: the least full first,
        then those with fewer requests. Of equal ones the oldest first."""

    def shortlist(self, role: Role, count: int) -> Sequence[WorkerView]:
        """The first ``count`` of them, or all that there are."""

    def prompt_load(self, worker_id: WorkerId) -> float:
        """The share of a living worker's time that prompts take, as far as that can be told."""

    def spared(self) -> Sequence[WorkerId]:
        """Mode auto: some that took new work and are not to compute prompts for now, the least
        full first; they may have changed since."""

    def batch_room(self, phases: Role) -> int:
        """The batches of all workers that take new work of these phases, together: of one that
        takes work of two phases twice."""

    def cached_tokens(self, ask: PlacementAsk) -> Mapping[WorkerId, int]:
        """Workers that should have the KV of some of the prompt's first tokens, and of how many:
        a guess. Of many such workers, some of those with the most."""

    def cached_tokens_at(self, ask: PlacementAsk, worker_id: WorkerId) -> int:
        """The same of one worker, whether or not it is among those."""

    def session_worker(self, ask: PlacementAsk) -> WorkerId | None:
        """Who has what the session's last request computed, if that worker takes new work."""

    def can_pair(self, one: WorkerId, other: WorkerId) -> bool:
        """False for two of which it is known that they cannot reach each other."""

    def link_cost(self, source: str, target: str) -> LinkCost | None:
        """What workers of node group ``target`` pay for reads of those of ``source``, as measured;
        None before anybody has."""
