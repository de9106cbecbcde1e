"""Two workers get to know each other before a request needs them both.

The first read of a pair makes the transport's connection, which takes from some milliseconds to
many seconds, and shows whether there can be one. So each reads one block of the other's into a
block that nobody uses; what is in it does not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pdray.core.errors import LinkError, TransferError
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.kvcache.layout import KVLayout
from pdray.link.connection import Connection
from pdray.link.messages import Meet, Met
from pdray.link.peers import PeerLinks
from pdray.transfer.transfer_thread import TransferThread
from pdray.worker.readable_peers import ReadablePeers
from pdray.worker.tasks import Tasks

TIMEOUT_S = 30.0
_ANY_BLOCK_ID = 0


class Meetings:
    """A worker's first words with its peers. Lives on the event loop.

    The dialer lends and says Meet; the other lends, reads, and says with Met how that went; the
    dialer reads, and says Met too. Both lend until they have heard the other's.
    """

    def __init__(
        self,
        *,
        layout: KVLayout,
        scratch_block_id: int,
        transfer: TransferThread,
        peers: PeerLinks,
        readable: ReadablePeers,
        tasks: Tasks,
    ) -> None:
        self._layout = layout
        self._scratch_block_id = scratch_block_id
        self._transfer = transfer
        self._peers = peers
        self._readable = readable
        self._tasks = tasks
        self._heard: dict[Connection, asyncio.Future[str | None]] = {}

    async def meet_all(self, addresses: Sequence[WorkerAddress]) -> dict[WorkerId, str]:
        """All of them at once; those with which this worker can't work, and why."""
        failures = await asyncio.gather(*(self.meet(address) for address in addresses))
        met = zip(addresses, failures, strict=True)
        return {address.worker_id: failure for address, failure in met if failure is not None}

    async def meet(self, address: WorkerAddress) -> str | None:
        """Why the two can't work together; None where they can."""
        try:
            link = await self._peers.get(address)
        except LinkError as error:
            return str(error)
        if (unlike := self._unlike(link)) is not None:
            return unlike
        if link in self._heard:
            return f"{link.peer_id} is being met already"
        with self._lent(link) as heard:
            link.send(Meet())
            failure = await _within(TIMEOUT_S, heard, f"no word of {link.peer_id}")
            failure = failure or await self._read(link)
            link.send(Met(failure=failure))
        return failure

    def on_meet(self, link: Connection) -> None:
        if (unlike := self._unlike(link)) is not None:
            link.send(Met(failure=unlike))
        elif link not in self._heard:
            self._tasks.start(self._answer(link))

    def on_met(self, link: Connection, failure: str | None) -> None:
        heard = self._heard.get(link)
        if heard is not None and not heard.done():
            heard.set_result(failure)

    def on_lost(self, link: Connection) -> None:
        self.on_met(link, f"the link to {link.peer_id} was lost")

    async def _answer(self, link: Connection) -> None:
        with self._lent(link) as heard:
            link.send(Met(failure=await self._read(link)))
            await _within(TIMEOUT_S, heard, f"no word of {link.peer_id}")

    @contextmanager
    def _lent(self, link: Connection) -> Iterator[asyncio.Future[str | None]]:
        """Our memory, until the peer has read it: yields what will be how that went."""
        heard: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._heard[link] = heard
        self._transfer.begin_lending()
        try:
            yield heard
        finally:
            self._transfer.end_lending()
            del self._heard[link]

    async def _read(self, link: Connection) -> str | None:
        self._readable.add(link)
        remote_id, local_id = _ANY_BLOCK_ID, self._scratch_block_id
        if (plan := self._readable.plan_of(link)) is not None:
            remote_id = plan.first_unit(plan.theirs, remote_id)
            local_id = plan.first_unit(plan.ours, local_id)
        reading = asyncio.wrap_future(self._transfer.pull(link.peer_id, [remote_id], [local_id]))
        try:
            await asyncio.wait_for(reading, TIMEOUT_S)
        except TransferError as error:
            return f"the KV memory of {link.peer_id} cannot be read: {error}"
        except TimeoutError:
            return f"the KV memory of {link.peer_id} could not be read within {TIMEOUT_S:g} s"
        return None

    def _unlike(self, link: Connection) -> str | None:
        hello = link.peer_hello
        if hello.layout_digest == self._layout.content_digest:
            return None
        ours = self._layout.describe()
        return (
            f"KV layouts that cannot be converted: {link.peer_id} has {hello.layout_text}, "
            f"this worker {ours}"
        )


async def _within(seconds: float, heard: asyncio.Future[str | None], failure: str) -> str | None:
    try:
        return await asyncio.wait_for(heard, seconds)
    except TimeoutError:
        return f"{failure} within {seconds:g} s"
