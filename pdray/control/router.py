"""Admission and placement of requests: the queue, and who goes next."""

from __future__ import annotations

from dataclasses import replace

from pdray.core.placement import (
    MoveAsk,
    Placement,
    PlacementAsk,
    PrefixSource,
    Queued,
    Refusal,
    WorkerAddress,
)
from pdray.core.request import WorkerId
from pdray.policy.admission import (
    Admission,
    clamp_retry_after,
    decide,
    max_in_flight,
    retry_after_s,
)
from pdray.policy.placement.base import PlacementChoice, PlacementPolicy

from .fleet import Fleet
from .in_flight import InFlightTable, PlacedRequest
from .moves import choose_target
from .placed_counts import PlacedCounts
from .request_queue import QueuedRequest, RequestQueue
from .worker_record import WorkerRecord


class Router:
    """The most urgent first, then first come, first served, within the bound on requests in flight.

    Every ask that was answered with ``Queued`` is answered once more, by ``place_queued``,
    ``time_out`` or ``give_up``.
    """

    def __init__(
        self,
        policy: PlacementPolicy,
        fleet: Fleet,
        table: InFlightTable,
        *,
        max_queued: int,
        refuse_after_s: float | None,
    ) -> None:
        self.policy = policy
        self._fleet = fleet
        self._table = table
        self._max_queued = max_queued
        self._refuse_after_s = refuse_after_s
        self.counts = PlacedCounts()
        self._queue = RequestQueue()

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def queued_tokens(self) -> int:
        return self._queue.num_prompt_tokens

    def place(
        self, frontend_id: str, ask: PlacementAsk, now: float
    ) -> Placement | Queued | Refusal:
        known = self._answer_of_known(frontend_id, ask)
        if known is not None:
            return known
        if self._fleet.limits() is not None and not self._fleet.could_hold(ask):
            return self._refuse_too_long(ask)
        match self._admission(ask):
            case Admission.ADMIT:
                placement = self._choose(frontend_id, ask, now)
                if placement is not None:
                    return placement
            case Admission.REJECT:
                return self._refuse(ask, f"{self.num_queued} requests are queued", now)
        if self.num_queued >= self._max_queued:
            return self._refuse(ask, "no worker is ready, and nothing may queue", now)
        self._queue.put(QueuedRequest(frontend_id=frontend_id, ask=ask, queued_at=now))
        return Queued(request_id=ask.request_id)

    def move(self, frontend_id: str, ask: MoveAsk) -> WorkerAddress | None:
        """Who could go on with a request that decodes: it is booked there."""
        source = self._fleet.get(ask.source_id)
        target = None if source is None else choose_target(self._fleet, source.info, ask)
        if target is None:
            return None
        placed = self._table.get(ask.request_id)
        if placed is not None and placed.frontend_id == frontend_id:
            self._table.add(replace(placed, decode_id=target.info.worker_id))
        return target.info.address

    def place_queued(self, now: float) -> list[Placement | Refusal]:
        """Answers queued requests from the front for as long as they can go."""
        answers: list[Placement | Refusal] = []
        while (queued := self._queue.first) is not None:
            answer = self._answer_of_first(queued, now)
            if answer is None:
                break
            self._queue.remove(queued.ask.request_id)
            answers.append(answer)
        return answers

    def time_out(self, queued_before: float, now: float) -> list[Placement | Refusal]:
        """Refuses those that came before ``queued_before``."""
        answers: list[Placement | Refusal] = []
        while (queued := self._queue.oldest) is not None:
            if queued.queued_at > queued_before:
                break
            self._queue.remove(queued.ask.request_id)
            waited_s = now - queued.queued_at
            answers.append(self._refuse(queued.ask, f"queued for {waited_s:.0f} s", now))
        return answers

    def give_up(self, frontend_id: str, request_id: str, now: float) -> Refusal | None:
        """Takes a request off the queue for its frontend; None where it is not there. To try
        again can help: a frontend that was thought gone may be back."""
        queued = self._queue.get(request_id)
        if queued is None or queued.frontend_id != frontend_id:
            return None
        self._queue.remove(request_id)
        return self._refuse(queued.ask, "given up by its frontend", now)

    def queued_of(self, frontend_id: str) -> list[str]:
        return self._queue.of_frontend(frontend_id)

    def check_integrity(self) -> None:
        assert self.num_queued <= self._max_queued, f"{self.num_queued} requests are queued"
        self._queue.check_integrity()
        both = [request_id for request_id in self._table if request_id in self._queue]
        assert not both, f"queued and placed: {both}"

    def _admission(self, ask: PlacementAsk) -> Admission:
        return decide(
            is_next=self._queue.is_next(ask.priority),
            num_in_flight=len(self._table),
            max_in_flight=max_in_flight(self._fleet),
            num_queued=self.num_queued,
            max_queued=self._max_queued,
        )

    def _answer_of_known(
        self, frontend_id: str, ask: PlacementAsk
    ) -> Placement | Queued | Refusal | None:
        """The answer to an ask that was made before, as its reply may have been lost.

        One whose first worker has left is placed again.
        """
        queued = self._queue.get(ask.request_id)
        placed = self._table.get(ask.request_id)
        owner = queued or placed
        if owner is None:
            return None
        if owner.frontend_id != frontend_id:
            reason = f"request id {ask.request_id!r} is in use by another frontend"
            return Refusal(request_id=ask.request_id, reason=reason, retry_after_s=None)
        if queued is not None:
            return Queued(request_id=ask.request_id)
        assert placed is not None
        first_id = placed.prefill_id or placed.decode_id
        if placed.placement is not None and first_id in self._fleet:
            return placed.placement
        self._table.remove(ask.request_id)
        return None

    def _answer_of_first(self, queued: QueuedRequest, now: float) -> Placement | Refusal | None:
        if self._fleet.limits() is not None and not self._fleet.could_hold(queued.ask):
            return self._refuse_too_long(queued.ask)
        if len(self._table) >= max_in_flight(self._fleet):
            return None
        return self._choose(queued.frontend_id, queued.ask, now)

    def _choose(
        self, frontend_id: str, ask: PlacementAsk, now: float
    ) -> Placement | Refusal | None:
        choice = self.policy.place(self._fleet, ask)
        if choice is None:
            return None
        if (refusal := self._too_late(ask, choice)) is not None:
            return refusal
        prefill = None if choice.prefill_id is None else self._worker(choice.prefill_id)
        decodes = [self._worker(worker_id) for worker_id in choice.decode_ids]
        assert prefill is None or prefill.is_ready, f"not ready: {choice.prefill_id}"
        num_cached_tokens, prefix_source = self._cached(ask, prefill)
        placement = Placement(
            request_id=ask.request_id,
            prefill=None if prefill is None else prefill.info.address,
            decode_candidates=tuple([decode.info.address for decode in decodes]),
            prefix_source=prefix_source,
            together=choice.together,
        )
        if prefill is not None:
            num_tokens = max(ask.num_prompt_tokens - num_cached_tokens, 1)
            self._fleet.book_prefill(prefill.info.worker_id, num_tokens, now)
        decode_id = choice.decode_ids[0] if decodes else None
        if ask.session_id is not None:
            self._fleet.book_session(ask.session_id, choice.prefill_id, decode_id)
        self._table.add(
            PlacedRequest(
                request_id=ask.request_id,
                frontend_id=frontend_id,
                num_prompt_tokens=ask.num_prompt_tokens,
                prefill_id=choice.prefill_id,
                decode_id=decode_id,
                placement=placement,
            )
        )
        pools = [each.info.pool for each in (prefill, *decodes[:1]) if each is not None]
        self.counts.placed(choice.together, pools, now)
        return placement

    def _too_late(self, ask: PlacementAsk, choice: PlacementChoice) -> Refusal | None:
        if choice.queue_s is None or self._refuse_after_s is None:
            return None
        late_s = choice.queue_s - self._refuse_after_s
        if late_s <= 0.0:
            return None
        return Refusal(
            request_id=ask.request_id,
            reason=f"its first token could not come in time: the prompts before it take "
            f"{choice.queue_s:.1f} s, and the target is {self._refuse_after_s:g} s",
            retry_after_s=clamp_retry_after(late_s),
        )

    def _worker(self, worker_id: WorkerId) -> WorkerRecord:
        worker = self._fleet.get(worker_id)
        assert worker is not None, f"no such worker: {worker_id}"
        return worker

    def _cached(
        self, ask: PlacementAsk, prefill: WorkerRecord | None
    ) -> tuple[int, PrefixSource | None]:
        """How many tokens of the prompt need not be computed, and where the longest known prefix
        is, unless that is where the rest is computed."""
        if prefill is None:
            return 0, None
        tokens = self._fleet.cached_tokens(ask)
        prefill_id = prefill.info.worker_id
        num_own_tokens = tokens.get(prefill_id) or self._fleet.cached_tokens_at(ask, prefill_id)
        for worker_id in sorted(tokens, key=tokens.__getitem__, reverse=True):
            source = self._fleet.get(worker_id)
            num_tokens = tokens[worker_id]
            if num_tokens <= num_own_tokens:
                break
            if source is not None and self._may_lend(source, prefill):
                return num_tokens, PrefixSource(address=source.info.address, num_tokens=num_tokens)
        return num_own_tokens, None

    def _may_lend(self, source: WorkerRecord, prefill: WorkerRecord) -> bool:
        """One that drains may: only one that says nothing is not worth asking."""
        is_alike = source.info.layout_digest == prefill.info.layout_digest
        can_pair = self._fleet.can_pair(source.info.worker_id, prefill.info.worker_id)
        return is_alike and can_pair and not source.is_stale

    def _refuse(self, ask: PlacementAsk, reason: str, now: float) -> Refusal:
        return Refusal(
            request_id=ask.request_id,
            reason=reason,
            retry_after_s=retry_after_s(
                num_queued=self.num_queued, finished_per_s=self._table.finished_per_s(now)
            ),
        )

    def _refuse_too_long(self, ask: PlacementAsk) -> Refusal:
        limits = self._fleet.limits()
        assert limits is not None
        reason = (
            f"{ask.num_prompt_tokens} prompt tokens and max_tokens of {ask.max_tokens} are more "
            f"than any worker could hold: {limits.max_sequence_tokens} tokens at most"
        )
        return Refusal(request_id=ask.request_id, reason=reason, retry_after_s=None)
