"""Which of a worker's blocks a peer may be reading, and when they are its own again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pdray.core.clock import Clock
from pdray.core.handoff import LeaseEpoch, Watermark
from pdray.engine.engine import Engine
from pdray.engine.holds import BlockHold
from pdray.engine.sequence import Sequence
from pdray.link.connection import Connection
from pdray.link.messages import Acknowledge, GiveUp, Publish, Renew, Renewed, Withdraw
from pdray.transfer.lease import Lease, LeaseState, LeaseTable
from pdray.transfer.transfer_thread import TransferThread

logger = logging.getLogger(__name__)

QUARANTINE_SHARE = 1 / 6
"""Of a lease's time, after it has run out: clocks may be of unlike speed."""


@dataclass(slots=True, eq=False)
class _Loan:
    """What a lease holds is its own, whoever else holds the same blocks."""

    reader: Connection
    epoch: LeaseEpoch | None
    hold: BlockHold = field(default_factory=BlockHold)
    watermark: Watermark | None = None
    """The last one that was sent."""
    is_over: bool = False
    """Its end was told, though the blocks may be read still."""


class Lending:
    """Runs the lease protocol over links; each lease holds the blocks published under it until
    the protocol lets go of them.

    ``on_end(lease_id, failure)`` is called once for each lease that was accepted, when its reader
    has all, or will never have: for a lost or silent one as the blocks go into quarantine. Lives
    on the event loop.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        transfer: TransferThread,
        lease_s: float,
        clock: Clock,
        on_end: Callable[[str, str | None], None],
    ) -> None:
        self._engine = engine
        self._transfer = transfer
        self._clock = clock
        self._on_end = on_end
        self._table = LeaseTable(lease_s=lease_s, quarantine_s=lease_s * QUARANTINE_SHARE)
        self._loans: dict[str, _Loan] = {}

    @property
    def num_active(self) -> int:
        return len(self._loans)

    def offer(self, lease_id: str, reader: Connection) -> None:
        self._table.offer(lease_id, reader.peer_id, self._clock.now())

    def refused(self, lease_id: str) -> None:
        self._table.refuse(lease_id)

    def accepted(self, lease_id: str, reader: Connection) -> bool:
        """False where the lease has ended meanwhile, as with a lost reader: nothing can be
        published under it then."""
        if not self._table.accept(lease_id, self._clock.now()):
            return False
        self._begin(lease_id, _Loan(reader, self._transfer.epochs.take()))
        return True

    def _begin(self, lease_id: str, loan: _Loan) -> None:
        self._loans[lease_id] = loan
        # The owner polls from here on: the reader's first read makes the connection.
        self._transfer.begin_lending()

    def grant(self, lease_id: str, reader: Connection, hold: BlockHold) -> LeaseEpoch | None:
        """A lease on all that it will ever be good for, to a reader who has asked for that; its
        epoch."""
        self.offer(lease_id, reader)
        self._table.accept(lease_id, self._clock.now())
        loan = _Loan(reader, self._transfer.epochs.take(), hold)
        self._begin(lease_id, loan)
        return loan.epoch

    def publish(
        self, lease_id: str, sequence: Sequence, ready_tokens: int, first_token_id: int | None
    ) -> None:
        """Lets the reader read what is computed of a prompt; not where the lease has run out, or
        its reader is gone."""
        if not self._table.may_publish(lease_id):
            return
        loan = self._loans[lease_id]
        watermark = Watermark(
            lease_id=lease_id,
            ready_tokens=ready_tokens,
            runs=self._engine.published.lend_prompt(sequence, ready_tokens, loan.hold),
            first_token_id=first_token_id,
            epoch=loan.epoch,
        )
        self._send(loan, watermark)

    def publish_decode(
        self, lease_id: str, sequence: Sequence, token_ids: tuple[int, ...] = ()
    ) -> bool:
        """Lets the reader read a decode's full blocks; of a paused one all, with the
        ``token_ids`` that it does not know. False where the decode has no blocks any more, or
        nothing can be published."""
        if not self._table.may_publish(lease_id):
            return False
        loan = self._loans[lease_id]
        ready_tokens, runs = self._engine.published.lend_decode(sequence, loan.hold)
        if ready_tokens == 0:
            return False
        watermark = Watermark(
            lease_id=lease_id,
            ready_tokens=ready_tokens,
            runs=runs,
            first_token_id=token_ids[0] if token_ids else None,
            epoch=loan.epoch,
            later_token_ids=token_ids[1:],
        )
        self._send(loan, watermark)
        return True

    def withdraw(self, lease_id: str) -> None:
        """There is no more to read. The blocks are let go when the reader says so, or has surely
        stopped reading."""
        loan = self._loans.get(lease_id)
        changed = self._table.withdraw(lease_id)
        if loan is not None and changed:
            loan.reader.send(Withdraw(lease_id=lease_id))
        self._apply(changed, None)

    def on_renew(self, reader: Connection, message: Renew) -> None:
        now = self._clock.now()
        renewed = tuple(each for each in message.lease_ids if self._table.renew(each, now))
        if renewed:
            reader.send(Renewed(lease_ids=renewed, asked_at=message.asked_at))
        for lease_id in renewed:
            loan = self._loans[lease_id]
            if loan.watermark is not None:
                # Should it have been lost, the reader would renew, and wait for it, for ever.
                self._send(loan, loan.watermark)

    def _send(self, loan: _Loan, watermark: Watermark) -> None:
        loan.watermark = watermark
        loan.reader.send(Publish(watermark=watermark))

    def on_give_up(self, message: GiveUp) -> None:
        loan = self._loans.get(message.lease_id)
        if self._table.give_up(message.lease_id) and loan is not None:
            self._tell_end(message.lease_id, loan, message.reason)

    def on_acknowledge(self, message: Acknowledge) -> None:
        self._apply(self._table.acknowledge(message.lease_id), message.failure)

    def on_reader_lost(self, reader: Connection) -> None:
        changed = self._table.reader_lost(reader.peer_id)
        self._apply(changed, f"decode worker {reader.peer_id} was lost during the handoff")

    def tick(self) -> None:
        self._apply(self._table.tick(self._clock.now()), "the handoff's lease ran out")

    def _apply(self, changed: tuple[Lease, ...], failure: str | None) -> None:
        for lease in changed:
            loan = self._loans.get(lease.lease_id)
            if loan is None:
                continue
            if lease.state is LeaseState.QUARANTINED:
                self._quarantine(lease.lease_id, loan, failure)
            elif lease.may_release_blocks:
                self._release(lease.lease_id, loan, failure)

    def _quarantine(self, lease_id: str, loan: _Loan, failure: str | None) -> None:
        logger.warning("lease in quarantine: %s, lease_id=%s", failure, lease_id)
        self._engine.holds.quarantine(loan.hold)
        self._tell_end(lease_id, loan, failure)

    def _release(self, lease_id: str, loan: _Loan, failure: str | None) -> None:
        del self._loans[lease_id]
        self._transfer.end_lending()
        if loan.epoch is not None:
            self._transfer.epochs.end(loan.epoch)  # before anybody can get the blocks
        self._tell_end(lease_id, loan, failure)
        if loan.hold.is_quarantined:
            self._engine.holds.end_quarantine(loan.hold)
        else:
            self._engine.holds.release(loan.hold)

    def _tell_end(self, lease_id: str, loan: _Loan, failure: str | None) -> None:
        if not loan.is_over:
            loan.is_over = True
            self._on_end(lease_id, failure)
