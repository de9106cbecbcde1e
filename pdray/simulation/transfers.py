"""Handoffs: which worker reads a prompt's KV of which, and when it has all of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pdray.core.link_cost import LinkCost
from pdray.core.request import WorkerId

from .profile import Profile
from .sequence import SimulatedSequence
from .worker import SimulatedWorker


@dataclass(slots=True, eq=False)
class Handoff:
    """A prompt computed on ``source`` for ``target``, which has read, or is reading, the KV of
    ``num_read`` tokens: until ``read_at``."""

    source: SimulatedWorker
    lent: SimulatedSequence
    target: SimulatedWorker
    reserved: SimulatedSequence
    num_read: int
    read_at: float = 0.0


class Transfers:
    """Reads of one peer take turns, as in transfer/read_queue.py; different peers do not disturb
    each other."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._free_at: dict[tuple[WorkerId, WorkerId], float] = {}
        self._num_reads: dict[WorkerId, Counter[str]] = {}

    def publish(self, handoff: Handoff, now: float) -> float:
        """All that is computed may be read. Returns when the target has it."""
        num_tokens = handoff.lent.num_computed - handoff.num_read
        if num_tokens > 0:
            handoff.num_read = handoff.lent.num_computed
            handoff.read_at = self._read(handoff, num_tokens, now)
        return max(handoff.read_at, now)

    def _read(self, handoff: Handoff, num_tokens: int, now: float) -> float:
        source, target = handoff.source.info, handoff.target.info
        link = self._profile.link(source.node_group, target.node_group)
        reads = self._num_reads.setdefault(target.worker_id, Counter())
        reads[source.node_group] += 1
        seconds = link.latency_s + target.kv_bytes(num_tokens) / link.bytes_per_s
        pair = source.worker_id, target.worker_id
        free_at = self._free_at[pair] = max(self._free_at.get(pair, 0.0), now) + seconds
        return free_at

    def costs(self, target: SimulatedWorker) -> tuple[LinkCost, ...]:
        """What a worker's reads have cost, as it would tell."""
        reads = self._num_reads.get(target.info.worker_id, Counter())
        return tuple(
            self._profile.link(source, target.info.node_group).cost(num_reads)
            for source, num_reads in reads.items()
        )

    def forget(self, worker_id: WorkerId) -> None:
        self._num_reads.pop(worker_id, None)
        for pair in [pair for pair in self._free_at if worker_id in pair]:
            del self._free_at[pair]
