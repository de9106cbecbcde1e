"""A running decode's way to another worker: ask, let it copy meanwhile, pause, let go.

The source of a migration is an owner as any other: `lending.py` holds the blocks, and the target
pulls them as it pulls a prompt (`pulling.py`).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass

from pdray.core.clock import Clock
from pdray.core.errors import LinkError
from pdray.core.handoff import RESERVED_MARGIN_TOKENS
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.engine.engine import Engine
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from pdray.link.messages import CaughtUp, Migrate, OfferReply
from pdray.metrics.prometheus import WorkerMetrics
from pdray.worker.attempts import AttemptKey, AttemptTable
from pdray.worker.lending import Lending
from pdray.worker.offering import Offering
from pdray.worker.outbox import Outbox
from pdray.worker.tasks import Tasks

logger = logging.getLogger(__name__)

COPY_S = 20.0
"""For the blocks that are full while it decodes on."""
PAUSE_S = 2.0
"""For the rest; then the decode goes on here."""
MAX_ROUNDS = 8
"""Of copying what was filled while the last round was copied."""


class MovePhase(enum.StrEnum):
    """Where a migration is, at the source.

    ::

        ASKING -> COPYING -> PAUSING -> PAUSED -> (the target has it)
           |         |          |          |
           +---------+----------+----------+----> (it goes on here, or has ended)

    A decode that ends, or is cancelled, takes its migration with it.
    """

    ASKING = "asking"
    COPYING = "copying"
    PAUSING = "pausing"
    PAUSED = "paused"


@dataclass(slots=True, eq=False)
class Move:
    """One migration. Its target knew of ``num_known`` output tokens when it reserved, all of them
    computed; ``num_published`` full blocks of each table it may read."""

    sequence: Sequence
    frontend_id: str
    target: WorkerAddress
    num_known: int
    deadline: float
    phase: MovePhase = MovePhase.ASKING
    lease_id: str | None = None
    num_published: int = 0
    num_rounds: int = 0
    is_over: bool = False

    @property
    def key(self) -> AttemptKey:
        return self.sequence.request_id, self.sequence.attempt


class Migrating:
    """The decodes that leave one worker. Lives on the event loop; calls no blocking thing."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        engine: Engine,
        offering: Offering,
        lending: Lending,
        outbox: Outbox,
        attempts: AttemptTable,
        metrics: WorkerMetrics,
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._offering = offering
        self._lending = lending
        self._outbox = outbox
        self._attempts = attempts
        self._metrics = metrics
        self._tasks = tasks
        self._clock = clock
        self._moves: dict[AttemptKey, Move] = {}
        self._by_lease: dict[str, Move] = {}

    @property
    def num_active(self) -> int:
        return len(self._moves)

    def on_migrate(self, frontend_id: str, message: Migrate) -> None:
        """Begins; the frontend hears how it ends, unless the request ends before."""
        key = (message.request_id, message.attempt)
        seq = self._engine.find_decode(*key) if self._attempts.is_live(*key) else None
        refusal: str | None = None
        if message.target.worker_id == self._worker_id:
            refusal = f"it runs on {self._worker_id} already"
        elif key in self._moves:
            refusal = f"it is on its way to {self._moves[key].target.worker_id}"
        elif seq is None:
            refusal = f"it does not decode on {self._worker_id}"
        if refusal is not None or seq is None:
            self._outbox.moved(frontend_id, *key, message.target.worker_id, refusal)
            return
        move = Move(
            sequence=seq,
            frontend_id=frontend_id,
            target=message.target,
            num_known=len(seq.output_token_ids) - 1,
            deadline=self._clock.now() + COPY_S,
        )
        self._moves[key] = move
        self._tasks.start(self._ask(move))

    async def _ask(self, move: Move) -> None:
        seq = move.sequence
        try:
            reply = await self._offering.ask(
                seq.request,
                seq.attempt,
                move.frontend_id,
                move.target,
                made_token_ids=tuple(
                    seq.output_token_ids[len(seq.request.output_token_ids) : move.num_known]
                ),
            )
        except LinkError as error:
            reply = OfferReply(lease_id="", refusal=str(error), is_final=True)
        if reply.refusal is not None:
            self._fail(move, reply.refusal)
        elif move.is_over:
            self._lending.withdraw(reply.lease_id)
        else:
            move.phase, move.lease_id = MovePhase.COPYING, reply.lease_id
            self._by_lease[reply.lease_id] = move
            self._copy(move)

    def on_caught_up(self, message: CaughtUp) -> None:
        """The target has all that it may read."""
        move = self._by_lease.get(message.lease_id)
        if move is not None and move.phase is MovePhase.COPYING:
            self._copy(move)

    def _copy(self, move: Move) -> None:
        """What is full by now; with nothing new, or with too little gained by it, it is time for
        the rest."""
        seq = move.sequence
        # Tokens of the step that runs, and of one that is launched ahead of it, come yet.
        if len(seq.output_token_ids) + 2 > move.num_known + RESERVED_MARGIN_TOKENS:
            self._fail(move, "its blocks move too slowly: it has outgrown what was reserved")
            return
        num_full = seq.num_computed_tokens // self._engine.layout.block_size
        if num_full > move.num_published and move.num_rounds < MAX_ROUNDS:
            move.num_rounds += 1
            move.num_published = num_full
            self._publish(move, ())
        else:
            move.phase = MovePhase.PAUSING
            self._tasks.start(self._pause(move))

    async def _pause(self, move: Move) -> None:
        seq = move.sequence
        is_paused = await asyncio.wrap_future(self._engine.pausing.pause(seq))
        if move.is_over:
            self._engine.pausing.resume(seq)
        elif not is_paused:
            self._fail(move, "it has ended, or has lost its blocks")
        else:
            move.phase, move.deadline = MovePhase.PAUSED, self._clock.now() + PAUSE_S
            self._publish(move, tuple(seq.output_token_ids[move.num_known :]))

    def _publish(self, move: Move, token_ids: tuple[int, ...]) -> None:
        assert move.lease_id is not None, "nothing is reserved at the target"
        if not self._lending.publish_decode(move.lease_id, move.sequence, token_ids):
            self._fail(move, "it has lost its blocks, or its lease")

    def on_lease_end(self, lease_id: str, failure: str | None) -> bool:
        """Whether the lease was of a migration: then its target has all of it, or gives up."""
        move = self._by_lease.get(lease_id)
        if move is None:
            return False
        if failure is None and move.phase is MovePhase.PAUSED:
            self._let_go(move)
        else:
            self._fail(move, failure or "the target was done too early")
        return True

    def _let_go(self, move: Move) -> None:
        self._forget(move)
        self._engine.release(move.sequence)
        self._attempts.end(*move.key)
        self._metrics.migration_ended(has_moved=True)
        self._outbox.moved(move.frontend_id, *move.key, move.target.worker_id, None)

    def _fail(self, move: Move, reason: str) -> None:
        """The decode goes on here, as if nothing had been asked. A paused one's target may have
        got all that it needs, and not have said so: its frontend settles who goes on."""
        if move.is_over:
            return
        logger.warning("a decode stays: %s, request_id=%s", reason, move.sequence.request_id)
        may_run_there = move.phase is MovePhase.PAUSED
        self._end(move)
        self._metrics.migration_ended(has_moved=False)
        self._outbox.moved(
            *(move.frontend_id, *move.key, move.target.worker_id, reason),
            may_run_there=may_run_there,
        )
        if may_run_there:
            self._engine.pausing.resume(move.sequence)

    def _end(self, move: Move) -> None:
        self._forget(move)
        if move.lease_id is not None:
            self._lending.withdraw(move.lease_id)

    def _forget(self, move: Move) -> None:
        move.is_over = True
        del self._moves[move.key]
        if move.lease_id is not None:
            del self._by_lease[move.lease_id]

    def on_step(self, output: SequenceOutput) -> None:
        """A decode that has ended goes nowhere."""
        if output.error is not None or output.finish_reason is not None:
            self.cancel(output.sequence.request_id, output.sequence.attempt)

    def cancel(self, request_id: str, attempt: int) -> None:
        """Before the sequence itself is aborted."""
        move = self._moves.get((request_id, attempt))
        if move is not None:
            self._end(move)

    def tick(self) -> None:
        now = self._clock.now()
        for move in list(self._moves.values()):
            if move.deadline <= now:
                self._fail(move, f"the target was not done in time: it was {move.phase}")
