"""What comes to a decode worker, a prompt or a decode that runs: reserve, pull, acknowledge, join
the batch."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.errors import StaleReadError, TransferError
from pdray.core.handoff import RESERVED_MARGIN_TOKENS, Handoff, Watermark
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    CaughtUp,
    GiveUp,
    OfferReply,
    PrefillLost,
    Renew,
    Renewed,
)
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.reading import LeasedRead, ReadState, ReadTable
from pdray.transfer.transfer_thread import PullReport, TransferThread
from pdray.worker.arriving_blocks import ArrivingBlocks
from pdray.worker.attempts import AttemptKey, AttemptTable
from pdray.worker.outbox import Outbox
from pdray.worker.phase_times import PhaseTimes
from pdray.worker.read_log import ReadLog
from pdray.worker.readable_peers import ReadablePeers
from pdray.worker.tasks import Tasks

logger = logging.getLogger(__name__)

REMEMBERED_S = 60.0
"""Longer than any offer can be under way."""
READ_ATTEMPTS = 3
READ_RETRY_S = 0.05


@dataclass(slots=True, eq=False)
class Pull:
    """One handoff between its reservation and its first decode step."""

    handoff: Handoff
    owner: Connection
    sequence: Sequence
    arriving: ArrivingBlocks
    watermark: Watermark | None = None
    complete_at: float | None = None
    """When the last watermark came: from then on the transfer can be seen from outside."""

    @property
    def lease_id(self) -> str:
        return self.handoff.lease_id

    @property
    def key(self) -> AttemptKey:
        return self.handoff.request.request_id, self.handoff.attempt

    def is_news(self, watermark: Watermark) -> bool:
        known = self.watermark
        if known is None or watermark.ready_tokens > known.ready_tokens:
            return True
        return known.first_token_id is None and watermark.first_token_id is not None

    def has_room_for(self, watermark: Watermark) -> bool:
        return all(
            run.end_block <= self.sequence.block_tables[run.group_id].end_block
            for run in watermark.runs
        )

    @property
    def num_found_blocks(self) -> int:
        """That its prompt needs and that were here already, in the prefix cache."""
        return sum(table.num_shared for table in self.sequence.block_tables)


class Pulling:
    """What one worker pulls. Lives on the event loop; reads go on in the transfer thread."""

    def __init__(
        self,
        *,
        engine: Engine,
        transfer: TransferThread,
        readable: ReadablePeers,
        attempts: AttemptTable,
        metrics: WorkerMetrics,
        read_log: ReadLog,
        max_batch_size: int,
        outbox: Outbox,
        phase_times: PhaseTimes,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._phase_times = phase_times
        self._tasks = tasks
        self._transfer = transfer
        self._readable = readable
        self._attempts = attempts
        self._metrics = metrics
        self._read_log = read_log
        self._max_batch_size = max_batch_size
        self._outbox = outbox
        self._clock = clock
        self._reads = ReadTable(remembered_s=REMEMBERED_S)
        self._pulls: dict[str, Pull] = {}

    @property
    def num_active(self) -> int:
        return len(self._pulls)

    def on_offer(self, owner: Connection, handoff: Handoff) -> OfferReply:
        """Reserves all the blocks that the prompt needs, or none."""

        def reply(refusal: str | None, *, is_final: bool = False) -> OfferReply:
            return OfferReply(lease_id=handoff.lease_id, refusal=refusal, is_final=is_final)

        if self._reads.knows(handoff.lease_id):
            is_over = handoff.lease_id not in self._pulls
            return reply("the lease is over here" if is_over else None, is_final=is_over)
        num_taken = len(self._pulls) + self._engine.num_running + self._engine.num_waiting
        if num_taken >= self._max_batch_size:
            return reply(f"batch of {self._max_batch_size} is full")
        if not self._engine.has_room(num_taken):
            return reply(f"more than {num_taken} could not keep to the ITL target")
        request = handoff.request
        sequence = Sequence.from_request(request, handoff.attempt, is_lent=False)
        sequence.output_token_ids += handoff.made_token_ids or ()
        num_left = request.sampling.max_tokens - len(sequence.output_token_ids)
        num_margin = min(RESERVED_MARGIN_TOKENS, num_left)
        max_tokens = self._engine.max_sequence_tokens
        if sequence.num_tokens + num_margin > max_tokens:
            refusal = f"{sequence.num_tokens} tokens and {num_margin} to grow; at most {max_tokens}"
            return reply(refusal, is_final=True)
        if handoff.is_migration and request.max_total_tokens > max_tokens:
            refusal = f"it may grow to {request.max_total_tokens} tokens; at most {max_tokens}"
            return reply(refusal, is_final=True)
        if handoff.is_migration and self._readable.plan_of(owner) is not None:
            return reply("a decode moves only between equal KV layouts", is_final=True)
        if not self._engine.reserve(sequence, num_margin, may_arrive_longer=handoff.is_migration):
            return reply("not enough free KV blocks")
        if not self._attempts.begin(request.request_id, handoff.attempt, handoff.frontend_id):
            self._engine.release(sequence)
            return reply("the attempt was cancelled", is_final=True)
        self._readable.add(owner)
        arriving = ArrivingBlocks(
            sequence.block_tables, self._engine.layout.block_size, self._readable.plan_of(owner)
        )
        self._pulls[handoff.lease_id] = Pull(handoff, owner, sequence, arriving)
        now = self._clock.now()
        self._reads.reserve(handoff.lease_id, owner.peer_id, handoff.lease_s, now)
        return reply(None)

    def on_publish(self, watermark: Watermark) -> None:
        pull, read = self._pulls.get(watermark.lease_id), self._reads.get(watermark.lease_id)
        if pull is None or read is None or not read.is_open:
            return
        if not pull.is_news(watermark):
            return
        if pull.handoff.is_migration and not pull.has_room_for(watermark):
            self._give_up(pull, f"{watermark.ready_tokens} tokens are more than was reserved for")
            return
        pull.watermark = watermark
        now = self._clock.now()
        if watermark.first_token_id is not None:
            pull.complete_at = now
        remote, local = pull.arriving.take_new(watermark)
        if remote:
            if not self._reads.begin(pull.lease_id, now):
                return  # out of time: the next tick gives it up
            self._tasks.start(self._await_read(pull, remote, local))
        if watermark.first_token_id is not None:
            self._apply(pull, self._reads.last(pull.lease_id, now))
        elif not remote:
            self._tell_progress(pull)

    async def _await_read(self, pull: Pull, remote: list[int], local: list[int]) -> None:
        failure: str | None = None
        try:
            report = await self._read(pull, remote, local)
        except TransferError as error:
            failure = str(error)
        else:
            self._read_log.finished(report, pull.owner, is_hidden=pull.complete_at is None)
        self._apply(pull, self._reads.end(pull.lease_id, failure, self._clock.now()))

    async def _read(self, pull: Pull, remote: list[int], local: list[int]) -> PullReport:
        """Raises TransferError once it has failed READ_ATTEMPTS times, or need not be tried
        again."""
        assert pull.watermark is not None
        epoch = pull.watermark.epoch
        num_failed = 0
        while True:
            try:
                reading = self._transfer.pull(
                    pull.owner.peer_id, remote, local, flow=pull.lease_id, epoch=epoch
                )
                return await asyncio.wrap_future(reading)
            except TransferError as error:
                num_failed += 1
                read = self._reads.get(pull.lease_id)
                is_wanted = read is not None and read.is_open and not pull.owner.is_closed
                is_stale = isinstance(error, StaleReadError)
                if is_stale or num_failed == READ_ATTEMPTS or not is_wanted:
                    raise
                logger.warning("a read is tried again: %s, lease_id=%s", error, pull.lease_id)
            await asyncio.sleep(READ_RETRY_S)
            self._readable.add_again(pull.owner)

    def _apply(self, pull: Pull, changed: LeasedRead | None) -> None:
        """What a new state of its reading means for a pull's blocks."""
        if changed is None:
            return
        match changed.state:
            case ReadState.WAITING:
                self._tell_progress(pull)
            case ReadState.DRAINING:
                self._engine.quarantine(pull.sequence)
                reason = changed.failure or ""
                pull.owner.send(GiveUp(lease_id=pull.lease_id, reason=reason))
            case ReadState.ARRIVED:
                assert pull.watermark is not None
                self._join(pull, pull.watermark)
            case ReadState.GIVEN_UP:
                self._end_failed(pull, changed.failure)

    def _tell_progress(self, pull: Pull) -> None:
        """Who decodes on meanwhile has to know when little is left to come."""
        if pull.handoff.is_migration:
            pull.owner.send(CaughtUp(lease_id=pull.lease_id))

    def _join(self, pull: Pull, watermark: Watermark) -> None:
        del self._pulls[pull.lease_id]
        pull.owner.send(Acknowledge(lease_id=pull.lease_id, failure=None))
        assert pull.complete_at is not None
        self._metrics.blocks_found(
            num_blocks=pull.num_found_blocks, block_bytes=self._engine.layout.block_bytes
        )
        if not pull.handoff.is_migration:
            self._phase_times.has_arrived(pull.sequence, prefilled_at=pull.complete_at)
        assert watermark.first_token_id is not None, "more is to come"
        pull.sequence.arrive(watermark.first_token_id, *watermark.later_token_ids)
        self._engine.add(pull.sequence)

    def _end_failed(self, pull: Pull, failure: str | None) -> None:
        del self._pulls[pull.lease_id]
        self._attempts.end(*pull.key)
        if pull.sequence.is_quarantined:
            self._engine.end_quarantine(pull.sequence)
        else:
            self._engine.release(pull.sequence)
        pull.owner.send(Acknowledge(lease_id=pull.lease_id, failure=failure))

    def _give_up(self, pull: Pull, reason: str) -> None:
        """The pull will not end well. Its blocks stay untouchable while a read may fill them."""
        self._apply(pull, self._reads.give_up(pull.lease_id, reason, self._clock.now()))

    def withdraw(self, owner: Connection, lease_id: str) -> None:
        """The owner has no more use for the pull; it is told when the last read is over."""
        pull = self._pulls.get(lease_id)
        if pull is None:
            self._reads.refuse(lease_id, self._clock.now())
            owner.send(Acknowledge(lease_id=lease_id, failure="unknown lease"))
            return
        self._give_up(pull, "withdrawn by its owner")

    def cancel(self, request_id: str, attempt: int) -> None:
        for pull in self._pulls_of(request_id, attempt):
            self._give_up(pull, "cancelled")

    def _pulls_of(self, request_id: str, attempt: int) -> list[Pull]:
        return [pull for pull in self._pulls.values() if pull.key == (request_id, attempt)]

    def on_owner_lost(self, owner: Connection) -> None:
        """The owner is gone: nothing more will come of what it offered."""
        for pull in list(self._pulls.values()):
            if pull.owner is owner:
                is_migration = pull.handoff.is_migration
                what = "decode worker" if is_migration else "prefill worker"
                way = "migration" if is_migration else "handoff"
                self._fail(pull, f"{what} {owner.peer_id} was lost during the {way}")

    def tick(self) -> None:
        """Asks for more time where it is due, and gives up the pulls that have none left."""
        now = self._clock.now()
        for read in self._reads.tick(now):
            self._apply(self._pulls[read.lease_id], read)
        due: dict[Connection, list[str]] = {}
        for read in self._reads.take_renewals(now):
            due.setdefault(self._pulls[read.lease_id].owner, []).append(read.lease_id)
        for owner, lease_ids in due.items():
            owner.send(Renew(lease_ids=tuple(lease_ids), asked_at=now))

    def on_renewed(self, message: Renewed) -> None:
        for lease_id in message.lease_ids:
            self._reads.renewed(lease_id, message.asked_at)

    def on_prefill_lost(self, frontend_id: str, message: PrefillLost) -> None:
        """Its frontend has lost the owner of its blocks, who will not be able to name another."""
        reason = "its prefill worker was lost during the handoff"
        if not self._attempts.is_live(message.request_id, message.attempt):
            self._outbox.fail(frontend_id, message.request_id, message.attempt, reason)
        for pull in self._pulls_of(message.request_id, message.attempt):
            self._fail(pull, reason)

    def _fail(self, pull: Pull, reason: str) -> None:
        """Told to the frontend, as the owner cannot be told, or can do nothing about it."""
        self._outbox.fail(pull.handoff.frontend_id, *pull.key, reason)
        self._give_up(pull, reason)
