"""What becomes of each message that reaches a worker, and of a link that is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pdray.core.handoff import Handoff
from pdray.core.request import WorkerId
from pdray.core.snapshot import WorkerState
from pdray.kvcache.layout import KVLayout
from pdray.link.connection import Connection
from pdray.link.messages import (
    Acknowledge,
    AskChunk,
    AskFiles,
    Borrow,
    Cancel,
    CaughtUp,
    DecodeLost,
    GiveUp,
    Lent,
    Meet,
    Message,
    Met,
    Migrate,
    Offer,
    OfferReply,
    PrefillLost,
    Publish,
    ReleaseParked,
    Renew,
    Renewed,
    RenewParked,
    Submission,
    Submit,
    Withdraw,
)
from pdray.worker.attempts import AttemptTable
from pdray.worker.borrowing import Borrowing
from pdray.worker.decoding import Decoding
from pdray.worker.file_lending import FileLending
from pdray.worker.lending import Lending
from pdray.worker.meeting import Meetings
from pdray.worker.migrating import Migrating
from pdray.worker.offering import Offering
from pdray.worker.outbox import Outbox
from pdray.worker.parking import Parking
from pdray.worker.prefilling import Prefilling
from pdray.worker.prefix_lending import PrefixLending
from pdray.worker.pulling import Pulling
from pdray.worker.readable_peers import ReadablePeers
from pdray.worker.tasks import Tasks

logger = logging.getLogger(__name__)


class Inbox:
    """Knows which part of the worker a message is for, and what a worker in its ``state`` refuses.
    Lives on the event loop."""

    def __init__(
        self,
        worker_id: WorkerId,
        layout: KVLayout,
        state: Callable[[], WorkerState],
        *,
        attempts: AttemptTable,
        borrowing: Borrowing,
        decoding: Decoding,
        file_lending: FileLending,
        lending: Lending,
        meetings: Meetings,
        migrating: Migrating,
        offering: Offering,
        outbox: Outbox,
        parking: Parking,
        prefilling: Prefilling,
        prefix_lending: PrefixLending,
        pulling: Pulling,
        readable: ReadablePeers,
        tasks: Tasks,
    ) -> None:
        self._worker_id = worker_id
        self._layout = layout
        self._state = state
        self._attempts = attempts
        self._borrowing = borrowing
        self._decoding = decoding
        self._file_lending = file_lending
        self._lending = lending
        self._meetings = meetings
        self._migrating = migrating
        self._offering = offering
        self._outbox = outbox
        self._parking = parking
        self._prefilling = prefilling
        self._prefix_lending = prefix_lending
        self._pulling = pulling
        self._readable = readable
        self._tasks = tasks

    def on_message(self, connection: Connection, message: Message) -> None:
        """Runs in the loop and does not wait."""
        match message:
            case Submit():
                for submission in message.submissions:
                    self._submit(connection, submission)
                self._prefilling.pump()
            case Cancel():
                for request_id, attempt in message.attempts:
                    self._cancel(request_id, attempt)
            case RenewParked():
                may_extend = self._state() is WorkerState.READY
                self._parking.on_renew(connection, message.key, may_extend=may_extend)
            case ReleaseParked():
                self._parking.on_release(connection, message.key)
                self._prefilling.pump()
            case DecodeLost():
                self._prefilling.on_decode_lost(connection.peer_id, message)
            case PrefillLost():
                self._pulling.on_prefill_lost(connection.peer_id, message)
            case Meet():
                self._meetings.on_meet(connection)
            case Met():
                self._meetings.on_met(connection, message.failure)
            case Offer():
                connection.send(self._answer_offer(connection, message.handoff))
            case OfferReply():
                self._offering.on_reply(message)
            case Publish():
                self._pulling.on_publish(message.watermark)
            case Withdraw():
                self._pulling.withdraw(connection, message.lease_id)
            case Renew():
                self._lending.on_renew(connection, message)
            case Renewed():
                self._pulling.on_renewed(message)
            case GiveUp():
                self._lending.on_give_up(message)
            case Acknowledge():
                self._lending.on_acknowledge(message)
            case Migrate():
                self._migrating.on_migrate(connection.peer_id, message)
            case CaughtUp():
                self._migrating.on_caught_up(message)
            case Borrow():
                self._tasks.start(self._prefix_lending.answer(connection, message))
            case Lent():
                self._borrowing.on_lent(connection, message)
            case AskFiles():
                self._file_lending.on_ask_files(connection)
            case AskChunk():
                self._file_lending.on_ask_chunk(connection, message)
            case _:
                logger.warning("unexpected %s from %s", type(message).__name__, connection.peer_id)

    def _submit(self, connection: Connection, submission: Submission) -> None:
        request, frontend_id = submission.request, connection.peer_id
        state, key = self._state(), (request.request_id, submission.attempt)
        # While it drains too: what is parked here can be had nowhere else.
        if state is WorkerState.DRAINING and submission.claim is None:
            self._outbox.give_back(frontend_id, *key, self._worker_id)
        elif state is not WorkerState.READY and submission.claim is None:
            self._outbox.fail(frontend_id, *key, f"worker {self._worker_id} is {state}")
        elif self._attempts.begin(request.request_id, submission.attempt, frontend_id):
            self._prefilling.submit(frontend_id, submission)

    def _answer_offer(self, connection: Connection, handoff: Handoff) -> OfferReply:
        refusal: str | None = None
        # While it drains too: the request was placed before, and has nowhere else to go.
        is_draining = self._state() is WorkerState.DRAINING and not handoff.is_migration
        if self._state() is not WorkerState.READY and not is_draining:
            refusal = f"the worker is {self._state()}"
        elif connection.peer_hello.layout_digest != self._layout.content_digest:
            theirs, ours = connection.peer_hello.layout_text, self._layout.describe()
            refusal = f"KV blocks cannot be converted: offered are {theirs}, this worker has {ours}"
        if refusal is not None:
            return OfferReply(lease_id=handoff.lease_id, refusal=refusal, is_final=True)
        return self._pulling.on_offer(connection, handoff)

    def _cancel(self, request_id: str, attempt: int) -> None:
        ended = self._attempts.cancel(request_id, attempt)
        if ended is not None:
            self._prefilling.cancel(request_id, ended)
            self._pulling.cancel(request_id, ended)
            self._migrating.cancel(request_id, ended)
            self._decoding.cancel(request_id, ended)

    def on_lost(self, connection: Connection) -> None:
        """A link broke: what its other end wanted, lent or pulled comes to an end."""
        if self._outbox.detach(connection):
            for request_id, attempt in self._attempts.of_frontend(connection.peer_id):
                self._cancel(request_id, attempt)
        self._file_lending.on_lost(connection)
        self._meetings.on_lost(connection)
        self._readable.on_lost(connection)
        self._borrowing.on_lost(connection)
        self._pulling.on_owner_lost(connection)
        self._lending.on_reader_lost(connection)
        self._offering.on_reader_lost(connection)
