"""Who is alive, what they said last, and what was placed on them: the view of policies.

Every answer is kept up to date by events, so that none has to look at all workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pdray.core.link_cost import LinkCost
from pdray.core.mode import Mode
from pdray.core.placement import KeptPrefix, PlacementAsk, ServingLimits
from pdray.core.prefix_report import PrefixReport, name_numbers
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo, WorkerSnapshot

from .capacity import Capacity
from .link_costs import LinkCosts
from .prefix_directory import PrefixDirectory
from .prefix_index import PrefixIndex
from .prompt_share import PromptShare
from .ready_workers import ReadyWorkers
from .sessions import Sessions
from .worker_record import NOTHING_BOOKED, Booked, WorkerRecord

_MAX_SESSIONS = 1 << 16


class Fleet:
    """All living workers. A FleetView; only the control plane changes it."""

    def __init__(
        self,
        phases: Role = Role.MIXED,
        mode: Mode = Mode.POOLED,
        *,
        max_known_prefixes: int = 1 << 10,
        max_known_blocks: int = 1 << 16,
    ) -> None:
        self.phases = phases
        self.mode = mode
        self._workers: dict[WorkerId, WorkerRecord] = {}
        self._num_joined = 0
        # Those that are not stale, whoever was heard of longest ago first.
        self._heard: dict[WorkerId, WorkerRecord] = {}
        self._ready = ReadyWorkers()
        self._capacity = Capacity(phases)
        self._failed_pairs: dict[frozenset[WorkerId], str] = {}
        # Kept apart from the records: a remade controller hears of requests before workers.
        self._decoding: dict[WorkerId, Booked] = {}
        self._directory = PrefixDirectory(max_known_prefixes)
        self._prefixes = PrefixIndex(max_known_blocks)
        self._link_costs = LinkCosts()
        self._sessions = Sessions(_MAX_SESSIONS)
        self._prompt_share = PromptShare()
        self._cached: tuple[PlacementAsk, Sequence[int], Mapping[WorkerId, int]] | None = None

    def __contains__(self, worker_id: WorkerId | None) -> bool:
        return worker_id in self._workers

    def get(self, worker_id: WorkerId) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    def workers(self) -> list[WorkerRecord]:
        return list(self._workers.values())

    def ready(self, role: Role) -> tuple[WorkerRecord, ...]:
        return self._ready.of(role)

    def by_load(self, role: Role) -> Iterator[WorkerRecord]:
        return iter(self._ready.by_load(role))

    def shortlist(self, role: Role, count: int) -> list[WorkerRecord]:
        return self._ready.by_load(role).first(count)

    def prompt_load(self, worker_id: WorkerId) -> float:
        record = self._workers[worker_id]
        if self.mode is Mode.AUTO:
            return self._prompt_share.load_of(worker_id)
        return record.prompt_load

    def spared(self) -> Sequence[WorkerId]:
        return self._prompt_share.spared

    def batch_room(self, phases: Role) -> int:
        return self._ready.batch_room(phases)

    def can_pair(self, one: WorkerId, other: WorkerId) -> bool:
        return not self._failed_pairs or frozenset((one, other)) not in self._failed_pairs

    def cached_tokens(self, ask: PlacementAsk) -> Mapping[WorkerId, int]:
        """Looked up once for all who want to know it while an ask is answered."""
        return self._looked_up(ask)[2]

    def cached_tokens_at(self, ask: PlacementAsk, worker_id: WorkerId) -> int:
        return self._prefixes.count_tokens(self._looked_up(ask)[1], worker_id)

    def _looked_up(
        self, ask: PlacementAsk
    ) -> tuple[PlacementAsk, Sequence[int], Mapping[WorkerId, int]]:
        if self._cached is None or self._cached[0] is not ask:
            prefixes = name_numbers(ask.prefix_names).tolist()
            tokens = self._prefixes.find(prefixes)
            for kept in self._directory.find(prefixes):
                tokens[kept.worker_id] = max(tokens.get(kept.worker_id, 0), kept.num_tokens)
            self._cached = ask, prefixes, tokens
        return self._cached

    def session_worker(self, ask: PlacementAsk) -> WorkerId | None:
        if ask.session_id is None:
            return None
        # Who decoded it has all of it.
        for worker_id in reversed(self._sessions.get(ask.session_id)):
            record = None if worker_id is None else self._workers.get(worker_id)
            if record is not None and record.is_ready:
                return worker_id
        return None

    def link_cost(self, source: str, target: str) -> LinkCost | None:
        return self._link_costs.get(source, target)

    def could_hold(self, ask: PlacementAsk) -> bool:
        """Whether some pair of living workers, once empty, could hold this request; of the last
        ones where none lives."""
        return self._capacity.could_hold(ask)

    def limits(self) -> ServingLimits | None:
        """None until a pair of workers has lived; of none that lives, those of the last."""
        return self._capacity.limits

    @property
    def has_pair(self) -> bool:
        """Whether there are living workers for all phases that can work together."""
        return self._capacity.has_pair

    # Events

    def pair_met(self, one: WorkerId, other: WorkerId, failure: str | None) -> None:
        """Told of workers before they are added; forgotten when either is removed."""
        pair = frozenset((one, other))
        self._failed_pairs.pop(pair, None)
        if failure is not None:
            self._failed_pairs[pair] = failure

    def add(self, info: WorkerInfo, now: float) -> WorkerRecord:
        """A worker that is known already stays as it is."""
        known = self._workers.get(info.worker_id)
        if known is not None:
            return known
        booked = self._decoding.get(info.worker_id, NOTHING_BOOKED)
        record = WorkerRecord(info, self._num_joined, now, booked)
        self._num_joined += 1
        self._workers[info.worker_id] = self._heard[info.worker_id] = record
        self._capacity.add(info)
        self._prefixes.join(info.worker_id, info.block_size)
        self._ready.refresh(record)
        return record

    def remove(self, worker_id: WorkerId) -> None:
        record = self._workers.pop(worker_id, None)
        if record is not None:
            self._heard.pop(worker_id, None)
            self._capacity.remove(record.info)
            self._ready.remove(record)
            self._prefixes.leave(worker_id)
            self._cached = None
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
        self._heard.pop(snapshot.worker_id, None)
        self._heard[snapshot.worker_id] = record
        self._ready.refresh(record)

    def prefixes_told(self, worker_id: WorkerId, report: PrefixReport) -> bool:
        """False where the worker has to start its reports again."""
        self._cached = None
        return self._prefixes.report(worker_id, report)

    def prefixes_kept(self, kept: Sequence[KeptPrefix]) -> None:
        """What requests that ended have left behind, as their frontends tell."""
        self._cached = None
        for prefix in kept:
            self._directory.put(prefix)

    def set_role(self, worker_id: WorkerId, role: Role) -> None:
        """What is placed on a living worker from here on."""
        record = self._workers[worker_id]
        self._ready.remove(record)
        self._capacity.remove(record.info)
        record.info = replace(record.info, role=role)
        self._capacity.add(record.info)
        self._ready.refresh(record)

    def drain(self, worker_id: WorkerId) -> None:
        record = self._workers.get(worker_id)
        if record is not None:
            record.is_draining = True
            self._ready.refresh(record)

    def set_standby(self, worker_id: WorkerId, is_standby: bool) -> None:
        """A living worker that is warm, and gets no work until it is wanted."""
        record = self._workers[worker_id]
        record.is_standby = is_standby
        self._ready.refresh(record)

    def book_prefill(self, worker_id: WorkerId, num_tokens: int, now: float) -> None:
        """A prompt is on its way to this worker, which must be alive."""
        record = self._workers[worker_id]
        if self.mode is Mode.AUTO and record.step_time is not None:
            self._prompt_share.placed(num_tokens * record.step_time.prefill_token_s, now)
        record.add_prefill(num_tokens, now)
        self._ready.refresh(record)

    def book_decode(self, worker_id: WorkerId, num_requests: int, num_tokens: int) -> None:
        """So many requests more, or fewer, have this worker as first decode candidate."""
        before = self._decoding.get(worker_id, NOTHING_BOOKED)
        booked = Booked(before.num_requests + num_requests, before.num_tokens + num_tokens)
        if booked.num_requests:
            self._decoding[worker_id] = booked
        else:
            self._decoding.pop(worker_id, None)
        record = self._workers.get(worker_id)
        if record is not None:
            record.booked(booked)
            self._ready.refresh(record)

    def book_session(
        self, session_id: str, prefill_id: WorkerId | None, decode_id: WorkerId | None
    ) -> None:
        self._sessions.put(session_id, prefill_id, decode_id)

    def decoding(self) -> dict[WorkerId, Booked]:
        return dict(self._decoding)

    def tick(self, now: float, stale_after_s: float) -> None:
        """What time alone changes."""
        while self._heard:
            record = next(iter(self._heard.values()))
            if now - record.seen_at <= stale_after_s:
                break
            del self._heard[record.info.worker_id]
            record.is_stale = True
            self._ready.refresh(record)
        self._prefixes.sweep()
        if self.mode is Mode.AUTO:
            decodes = self._ready.by_load(Role.DECODE)
            self._prompt_share.settle(decodes, len(decodes), now)

    def check_integrity(self) -> None:
        """Asserts that what events have kept up to date is what all workers together say."""
        records = self.workers()
        for record in records:
            record.check_integrity(self._decoding.get(record.info.worker_id, NOTHING_BOOKED))
        self._capacity.check_integrity(record.info for record in records)
        self._ready.check_integrity(records)
        self._prefixes.check_integrity()
        fresh = sorted(
            (record for record in records if not record.is_stale), key=lambda record: record.seen_at
        )
        seen_at = [record.seen_at for record in self._heard.values()]
        assert seen_at == [record.seen_at for record in fresh], "not in the order of hearing"
