"""A frontend's calls to the workers that have parked prompts: keep them longer, or give them up."""

from __future__ import annotations

import asyncio
import logging

from pdray.core.errors import LinkError, PdrayError, WorkerLostError
from pdray.core.parked import LeaseKey, ParkedLease, lease_refused
from pdray.core.placement import WorkerAddress
from pdray.link.connection import Connection
from pdray.link.messages import Parked, ParkedAnswer, ReleaseParked, RenewParked
from pdray.link.peers import PeerLinks

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0


class ParkedLeases:
    """Lives on the event loop. Answers come in the order of the calls, on each link."""

    def __init__(self, peers: PeerLinks) -> None:
        self._peers = peers
        self._asked: dict[Connection, list[asyncio.Future[ParkedAnswer]]] = {}
        self._dropping: set[asyncio.Task[None]] = set()

    async def renew(self, owner: WorkerAddress, key: LeaseKey) -> float:
        """How long it has from now on. Raises HandleRefusedError, WorkerLostError."""
        return await self._call(owner, RenewParked(key=key))

    async def release(self, owner: WorkerAddress, key: LeaseKey) -> None:
        """Raises HandleRefusedError where it is free already, WorkerLostError."""
        await self._call(owner, ReleaseParked(key=key))

    def drop(self, owner: WorkerAddress, key: LeaseKey) -> None:
        """Releases without waiting; where that fails, the lease runs out by itself."""
        task = asyncio.get_running_loop().create_task(self._drop(owner, key))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def give_up(self, link: Connection, key: LeaseKey) -> None:
        """As ``drop``, where there is a link."""
        answer = self._ask(link, ReleaseParked(key=key))
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())

    def on_answer(self, link: Connection, message: ParkedAnswer) -> None:
        answer = self._asked[link].pop(0)
        if not answer.done():
            answer.set_result(message)

    def on_lost(self, link: Connection) -> None:
        for answer in self._asked.pop(link, ()):
            if not answer.done():
                answer.set_exception(WorkerLostError(f"worker {link.peer_id} was lost"))

    async def _drop(self, owner: WorkerAddress, key: LeaseKey) -> None:
        try:
            await self.release(owner, key)
        except PdrayError as error:
            logger.info("not released: %s, lease_id=%s", error, key.lease_id)

    async def _call(self, owner: WorkerAddress, message: RenewParked | ReleaseParked) -> float:
        try:
            link = await self._peers.get(owner)
        except LinkError as error:
            raise WorkerLostError(f"worker {owner.worker_id} cannot be reached: {error}") from error
        try:
            got = await asyncio.wait_for(self._ask(link, message), ANSWER_TIMEOUT_S)
        except TimeoutError:
            raise WorkerLostError(
                f"worker {owner.worker_id} has not answered for {ANSWER_TIMEOUT_S:g} s"
            ) from None
        if got.problem is not None:
            raise lease_refused(got.problem)
        return got.lease_s

    def _ask(
        self, link: Connection, message: RenewParked | ReleaseParked
    ) -> asyncio.Future[ParkedAnswer]:
        answer: asyncio.Future[ParkedAnswer] = asyncio.get_running_loop().create_future()
        if link.is_closed:
            answer.set_exception(WorkerLostError(f"worker {link.peer_id} was lost"))
            return answer
        self._asked.setdefault(link, []).append(answer)
        link.send(message)
        return answer


def lease_of(parked: Parked, owner: WorkerAddress, link: Connection) -> ParkedLease:
    """As others are told of it."""
    layout_digest = link.peer_hello.layout_digest
    assert layout_digest is not None, f"{owner.worker_id} is no worker"
    return ParkedLease(
        key=parked.key,
        secret_id=parked.secret_id,
        owner_id=owner.worker_id,
        owner_host=owner.host,
        owner_port=owner.port,
        layout_digest=layout_digest,
    )
