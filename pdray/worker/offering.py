"""Asks decode workers to reserve blocks, and brings their answers back."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

from pdray.core.handoff import Handoff
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request, WorkerId
from pdray.link.connection import Connection
from pdray.link.messages import Offer, OfferReply, Withdraw
from pdray.link.peers import PeerLinks
from pdray.worker.lending import Lending

OFFER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """An offer that waits for its answer."""

    reader: Connection
    reply: asyncio.Future[OfferReply]


class Offering:
    """The offers of one worker that are on their way. Lives on the event loop."""

    def __init__(
        self, *, worker_id: WorkerId, lease_s: float, peers: PeerLinks, lending: Lending
    ) -> None:
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._peers = peers
        self._lending = lending
        self._asked: dict[str, _Asked] = {}
        self._lease_numbers = itertools.count()

    async def ask(
        self,
        request: Request,
        attempt: int,
        frontend_id: str,
        candidate: WorkerAddress,
        made_token_ids: tuple[int, ...] | None = None,
    ) -> OfferReply:
        """The candidate's answer; where that is yes, blocks may be published under its lease.
        Raises LinkError where it cannot be reached."""
        reader = await self._peers.get(candidate)
        lease_id = f"{self._worker_id}/{next(self._lease_numbers)}"
        asked = _Asked(reader, asyncio.get_running_loop().create_future())
        self._asked[lease_id] = asked
        self._lending.offer(lease_id, reader)
        handoff = Handoff(
            lease_id=lease_id,
            request=request,
            attempt=attempt,
            frontend_id=frontend_id,
            owner_id=self._worker_id,
            lease_s=self._lease_s,
            made_token_ids=made_token_ids,
        )
        reader.send(Offer(handoff=handoff))
        try:
            reply = await asyncio.wait_for(asked.reply, OFFER_TIMEOUT_S)
        except TimeoutError:
            reply = _unanswered(lease_id, f"no answer to an offer within {OFFER_TIMEOUT_S} s")
            reader.send(Withdraw(lease_id=lease_id))
        finally:
            del self._asked[lease_id]
        if reply.refusal is not None:
            self._lending.refused(lease_id)
        elif not self._lending.accepted(lease_id, reader):
            # What it has reserved must not wait, and then fail the request, for nothing.
            reader.send(Withdraw(lease_id=lease_id))
            reply = _unanswered(lease_id, "its answer came when the offer was over")
        return reply

    def on_reply(self, message: OfferReply) -> None:
        asked = self._asked.get(message.lease_id)
        if asked is not None and not asked.reply.done():
            asked.reply.set_result(message)

    def on_reader_lost(self, reader: Connection) -> None:
        """Offers on this link will not be answered any more."""
        for lease_id, asked in self._asked.items():
            if asked.reader is reader and not asked.reply.done():
                asked.reply.set_result(_unanswered(lease_id, "its link was lost"))


def _unanswered(lease_id: str, why: str) -> OfferReply:
    return OfferReply(lease_id=lease_id, refusal=why, is_final=False)
