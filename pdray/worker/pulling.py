"""A handoff's way through a decode worker: reserve, pull, acknowledge, join the batch."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from pdray.core.clock import Clock
from pdray.core.errors import TransferError
from pdray.core.handoff import Handoff, Watermark
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from pdray.link.connection import Connection
from pdray.link.messages import Acknowledge, OfferReply, PrefillLost
from pdray.metrics.prometheus import WorkerMetrics
from pdray.transfer.transfer_thread import TransferThread
from pdray.worker.attempts import AttemptTable
from pdray.worker.decoding import Decoding
from pdray.worker.outbox import Outbox
from pdray.worker.readable_peers import ReadablePeers
from pdray.worker.tasks import Tasks

logger = logging.getLogger(__name__)

RESERVED_MARGIN_TOKENS = 128
"""Room to grow that a reservation holds beyond its prompt; preemption covers what is longer."""


@dataclass(slots=True, eq=False)
class Pull:
    """One handoff between its reservation and its first decode step."""

    handoff: Handoff
    owner: Connection
    sequence: Sequence
    deadline: float
    watermark: Watermark | None = None
    next_blocks: dict[int, int] = field(default_factory=dict)
    num_reads: int = 0
    complete_at: float | None = None
    """When the last watermark came: from then on the transfer can be seen from outside."""
    failure: str | None = None

    @property
    def is_over(self) -> bool:
        return self.failure is not None

    @property
    def num_found_blocks(self) -> int:
        """That its prompt needs and that were here already, in the prefix cache."""
        return sum(table.num_shared for table in self.sequence.block_tables)

    def take_new_blocks(self) -> tuple[list[int], list[int]]:
        """Remote and local ids of published blocks that no read was started for yet, but of
        those that the prefix cache had here."""
        assert self.watermark is not None
        remote: list[int] = []
        local: list[int] = []
        for run in self.watermark.runs:
            table = self.sequence.block_tables[run.group_id]
            first = self.next_blocks.get(run.group_id, table.first_own_block)
            end = max(first, run.first_block + len(run.block_ids))
            remote += run.block_ids[first - run.first_block :]
            local += table.block_ids[first - table.first_block : end - table.first_block]
            self.next_blocks[run.group_id] = end
        return remote, local


class Pulling:
    """The handoffs of one worker. Lives on the event loop; reads go on in the transfer thread."""

    def __init__(
        self,
        *,
        engine: Engine,
        transfer: TransferThread,
        readable: ReadablePeers,
        attempts: AttemptTable,
        metrics: WorkerMetrics,
        transport: str,
        max_batch_size: int,
        outbox: Outbox,
        decoding: Decoding,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._decoding = decoding
        self._tasks = tasks
        self._transfer = transfer
        self._readable = readable
        self._attempts = attempts
        self._metrics = metrics
        self._transport = transport
        self._max_batch_size = max_batch_size
        self._outbox = outbox
        self._clock = clock
        self._pulls: dict[str, Pull] = {}

    @property
    def num_active(self) -> int:
        return len(self._pulls)

    def on_offer(self, owner: Connection, handoff: Handoff) -> OfferReply:
        """Reserves all the blocks that the prompt needs, or none."""

        def reply(refusal: str | None, *, is_final: bool = False) -> OfferReply:
            return OfferReply(lease_id=handoff.lease_id, refusal=refusal, is_final=is_final)

        num_taken = len(self._pulls) + self._engine.num_running + self._engine.num_waiting
        if num_taken >= self._max_batch_size:
            return reply(f"batch of {self._max_batch_size} is full")
        request = handoff.request
        sequence = Sequence.from_request(request, handoff.attempt, is_lent=False)
        num_left = request.sampling.max_tokens - len(request.output_token_ids)
        num_margin = min(RESERVED_MARGIN_TOKENS, num_left)
        max_tokens = self._engine.max_sequence_tokens
        if sequence.num_tokens + num_margin > max_tokens:
            refusal = f"{sequence.num_tokens} tokens and {num_margin} to grow; at most {max_tokens}"
            return reply(refusal, is_final=True)
        if not self._engine.reserve(sequence, num_margin):
            return reply("not enough free KV blocks")
        if not self._attempts.begin(request.request_id, handoff.attempt, handoff.frontend_id):
            self._engine.release(sequence)
            return reply("the attempt was cancelled", is_final=True)
        self._readable.add(owner)
        deadline = self._clock.now() + handoff.lease_s / 2
        self._pulls[handoff.lease_id] = Pull(handoff, owner, sequence, deadline)
        return reply(None)

    def on_publish(self, watermark: Watermark) -> None:
        pull = self._pulls.get(watermark.lease_id)
        if pull is None or pull.is_over:
            return
        known = pull.watermark
        if known is not None and watermark.ready_tokens <= known.ready_tokens:
            return
        pull.watermark = watermark
        now = self._clock.now()
        pull.deadline = now + pull.handoff.lease_s / 2
        if watermark.first_token_id is not None:
            pull.complete_at = now
        remote, local = pull.take_new_blocks()
        if remote:
            self._read(pull, remote, local)
        self._settle(pull)

    def _read(self, pull: Pull, remote: list[int], local: list[int]) -> None:
        pull.num_reads += 1
        self._tasks.start(self._await_read(pull, remote, local))

    async def _await_read(self, pull: Pull, remote: list[int], local: list[int]) -> None:
        owner_id = pull.owner.peer_id
        try:
            reading = self._transfer.pull(owner_id, remote, local, flow=pull.handoff.lease_id)
            report = await asyncio.wrap_future(reading)
        except TransferError as error:
            self._give_up(pull, str(error))
        else:
            self._metrics.transfer_finished(
                report.transfer_s,
                queued_s=report.queued_s,
                transport=self._transport,
                source_pool=pull.owner.peer_hello.pool or "",
                num_blocks=report.num_blocks,
                num_bytes=report.num_bytes,
                is_hidden=pull.complete_at is None,
            )
        pull.num_reads -= 1
        self._settle(pull)

    def _settle(self, pull: Pull) -> None:
        """Ends the pull if no read is in flight and it is complete, or over."""
        if pull.num_reads or pull.handoff.lease_id not in self._pulls:
            return
        if pull.is_over:
            self._end_failed(pull)
        elif pull.watermark is not None and pull.watermark.first_token_id is not None:
            self._join(pull, pull.watermark.first_token_id)

    def _join(self, pull: Pull, first_token_id: int) -> None:
        del self._pulls[pull.handoff.lease_id]
        pull.owner.send(Acknowledge(lease_id=pull.handoff.lease_id, failure=None))
        assert pull.complete_at is not None
        self._metrics.blocks_found(
            num_blocks=pull.num_found_blocks, block_bytes=self._engine.layout.block_bytes
        )
        self._decoding.expect(pull.sequence, pull.complete_at)
        pull.sequence.arrive(first_token_id)
        self._engine.add(pull.sequence)

    def _end_failed(self, pull: Pull) -> None:
        del self._pulls[pull.handoff.lease_id]
        self._attempts.end(pull.handoff.request.request_id, pull.handoff.attempt)
        if pull.sequence.is_quarantined:
            self._engine.end_quarantine(pull.sequence)
        else:
            self._engine.release(pull.sequence)
        if not pull.owner.is_closed:
            pull.owner.send(Acknowledge(lease_id=pull.handoff.lease_id, failure=pull.failure))

    def _give_up(self, pull: Pull, reason: str) -> None:
        """The pull will not end well. Its blocks stay untouchable while a read may fill them."""
        if pull.is_over:
            return
        pull.failure = reason
        if pull.num_reads:
            self._engine.quarantine(pull.sequence)

    def withdraw(self, owner: Connection, lease_id: str) -> None:
        """The owner has no more use for the pull; it is told when the last read is over."""
        pull = self._pulls.get(lease_id)
        if pull is None:
            owner.send(Acknowledge(lease_id=lease_id, failure="unknown lease"))
            return
        self._give_up(pull, "withdrawn by its owner")
        self._settle(pull)

    def cancel(self, request_id: str, attempt: int) -> None:
        for pull in self._pulls_of(request_id, attempt):
            self._give_up(pull, "cancelled")
            self._settle(pull)

    def _pulls_of(self, request_id: str, attempt: int) -> list[Pull]:
        return [
            pull
            for pull in self._pulls.values()
            if (pull.handoff.request.request_id, pull.handoff.attempt) == (request_id, attempt)
        ]

    def on_owner_lost(self, owner: Connection) -> None:
        """The prefill worker is gone: nothing more will come of its handoffs."""
        for pull in list(self._pulls.values()):
            if pull.owner is owner:
                self._fail(pull, f"prefill worker {owner.peer_id} was lost during the handoff")

    def tick(self) -> None:
        """Gives up the pulls that have seen no progress for half a lease."""
        now = self._clock.now()
        for pull in list(self._pulls.values()):
            if pull.deadline <= now and not pull.is_over:
                self._give_up(pull, f"no progress within {pull.handoff.lease_s / 2} s")
                self._settle(pull)

    def on_prefill_lost(self, frontend_id: str, message: PrefillLost) -> None:
        """Its frontend has lost the prefill worker, who will not be able to name another."""
        reason = "its prefill worker was lost during the handoff"
        if not self._attempts.is_live(message.request_id, message.attempt):
            self._outbox.fail(frontend_id, message.request_id, message.attempt, reason)
        for pull in self._pulls_of(message.request_id, message.attempt):
            self._fail(pull, reason)

    def _fail(self, pull: Pull, reason: str) -> None:
        """Told to the frontend, as the owner cannot be told, or can do nothing about it."""
        handoff = pull.handoff
        self._outbox.fail(handoff.frontend_id, handoff.request.request_id, handoff.attempt, reason)
        self._give_up(pull, reason)
        self._settle(pull)
