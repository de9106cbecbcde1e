"""Who is alive, what they said last, and what was placed on them: the view of policies."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk, ServingLimits
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo, WorkerSnapshot, WorkerState

from .link_costs import LinkCosts

# A placement travels to the frontend and on to the worker: a snapshot that arrives sooner
# after it than this does not count it yet.
_SUBMIT_DELAY_S = 0.05


class WorkerRecord:
    """One living worker; the WorkerView that policies get."""

    def __init__(self, info: WorkerInfo, now: float, decoding: Counter[WorkerId]) -> None:
        self.info = info
        self.snapshot: WorkerSnapshot | None = None
        self.is_draining = False
        self.is_stale = False
        self.seen_at = now
        self._decoding = decoding
        self._unseen: deque[tuple[float, int]] = deque()

    @property
    def is_ready(self) -> bool:
        if self.is_draining or self.is_stale:
            return False
        return self.snapshot is None or self.snapshot.state is WorkerState.READY

    @property
    def prefill_backlog_tokens(self) -> int:
        reported = self.snapshot.prefill_backlog_tokens if self.snapshot else 0
        return reported + sum(num_tokens for _, num_tokens in self._unseen)

    @property
    def num_decoding(self) -> int:
        return self._decoding[self.info.worker_id]

    @property
    def kv_utilization(self) -> float:
        if self.snapshot is None or self.snapshot.num_blocks == 0:
            return 0.0
        used = self.snapshot.num_held_blocks + self.snapshot.num_quarantined_blocks
        return used / self.snapshot.num_blocks

    def update(self, snapshot: WorkerSnapshot, now: float) -> None:
        self.snapshot = snapshot
        self.seen_at = now
        self.is_stale = False
        while self._unseen and self._unseen[0][0] <= now - _SUBMIT_DELAY_S:
            self._unseen.popleft()

    def add_prefill(self, num_tokens: int, now: float) -> None:
        self._unseen.append((now, num_tokens))


class Fleet:
    """All living workers. A FleetView; only the control plane changes it."""

    def __init__(self, phases: Role = Role.MIXED, mode: Mode = Mode.POOLED) -> None:
        self.phases = phases
        self.mode = mode
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._failed_pairs: dict[frozenset[WorkerId], str] = {}
        # Kept apart from the records: a remade controller hears of requests before workers.
        self._decoding: Counter[WorkerId] = Counter()
        self._link_costs = LinkCosts()

    def __contains__(self, worker_id: WorkerId | None) -> bool:
        return worker_id in self._workers

    def get(self, worker_id: WorkerId) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    def workers(self) -> list[WorkerRecord]:
        return list(self._workers.values())

    def ready(self, role: Role) -> list[WorkerRecord]:
        return [w for w in self._workers.values() if w.is_ready and role in w.info.role]

    def can_pair(self, one: WorkerId, other: WorkerId) -> bool:
        return frozenset((one, other)) not in self._failed_pairs

    def transfer_s(self, source: WorkerId, target: WorkerId, num_bytes: int) -> float | None:
        if source == target:
            return 0.0
        groups = (self._workers[worker_id].info.node_group for worker_id in (source, target))
        cost = self._link_costs.get(*groups)
        return None if cost is None else cost.read_s(num_bytes)

    def pair_met(self, one: WorkerId, other: WorkerId, failure: str | None) -> None:
        """Told of workers before they are added; forgotten when either is removed."""
        pair = frozenset((one, other))
        self._failed_pairs.pop(pair, None)
        if failure is not None:
            self._failed_pairs[pair] = failure

    def add(self, info: WorkerInfo, now: float) -> WorkerRecord:
        """A worker that is known already stays as it is."""
        record = WorkerRecord(info, now, self._decoding)
        return self._workers.setdefault(info.worker_id, record)

    def remove(self, worker_id: WorkerId) -> None:
        self._workers.pop(worker_id, None)
        for pair in [pair for pair in self._failed_pairs if worker_id in pair]:
            del self._failed_pairs[pair]

    def update(self, snapshot: WorkerSnapshot, now: float) -> None:
        """Unknown workers are ignored: a late message of one that left."""
        record = self._workers.get(snapshot.worker_id)
        if record is None:
            return
        before = () if record.snapshot is None else record.snapshot.reads
        self._link_costs.reported(record.info.node_group, snapshot.reads, before)
        record.update(snapshot, now)

    def book_decode(self, worker_id: WorkerId, change: int) -> None:
        """One request more (1) or fewer (-1) has this worker as first decode candidate."""
        self._decoding[worker_id] += change
        if self._decoding[worker_id] == 0:
            del self._decoding[worker_id]

    def decoding(self) -> dict[WorkerId, int]:
        return dict(self._decoding)

    def mark_stale(self, now: float, stale_after_s: float) -> None:
        for record in self._workers.values():
            record.is_stale = now - record.seen_at > stale_after_s

    def could_hold(self, ask: PlacementAsk) -> bool:
        """Whether some pair of living workers, once empty, could hold this request."""
        num_total_tokens = ask.num_prompt_tokens + ask.max_tokens
        return any(
            (prefill is None or prefill.max_sequence_tokens >= ask.num_prompt_tokens)
            and (decode is None or decode.max_sequence_tokens >= num_total_tokens)
            for prefill, decode in self._pairs()
        )

    def limits(self) -> ServingLimits | None:
        """None while no pair of workers lives."""
        pairs = [[info for info in pair if info is not None] for pair in self._pairs()]
        if not pairs:
            return None
        max_model_len = max(min(info.max_model_len for info in pair) for pair in pairs)
        max_sequence_tokens = max(pair[-1].max_sequence_tokens for pair in pairs)
        return ServingLimits(
            max_model_len=max_model_len,
            max_sequence_tokens=min(max_sequence_tokens, max_model_len),
        )

    def _pairs(self) -> list[tuple[WorkerInfo | None, WorkerInfo | None]]:
        """The largest prefill and decode worker of every layout that has both; None for a phase
        that is another application's."""
        infos = [record.info for record in self._workers.values()]
        pairs: list[tuple[WorkerInfo | None, WorkerInfo | None]] = []
        for digest in dict.fromkeys(info.layout_digest for info in infos):
            alike = [info for info in infos if info.layout_digest == digest]
            prefill = _largest(alike, Role.PREFILL)
            decode = _largest(alike, Role.DECODE)
            if self.phases is Role.PREFILL:
                decode = None
            elif self.phases is Role.DECODE:
                prefill = None
            elif prefill is None or decode is None:
                continue
            if prefill is not None or decode is not None:
                pairs.append((prefill, decode))
        return pairs


def _largest(infos: Sequence[WorkerInfo], role: Role) -> WorkerInfo | None:
    able = [info for info in infos if role in info.role]
    return max(able, key=lambda info: info.max_sequence_tokens, default=None)
