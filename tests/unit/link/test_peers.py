from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pdray.core.errors import LinkError, LinkRefusedError
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.link.connection import Connection, dial
from pdray.link.messages import Failed, Message, Withdraw
from pdray.link.peers import PeerLinks
from pdray.link.server import LinkServer
from tests.unit.link.listener import (
    LINK_KEY,
    PATIENCE_S,
    Listener,
    hello,
    listening,
    raw_listening,
)


class Node:
    """PeerLinks of ``peer_id``, and in ``events`` what they delivered: messages and losses."""

    def __init__(self, peer_id: str) -> None:
        self.events: asyncio.Queue[Message | Connection] = asyncio.Queue()
        self.links = PeerLinks(
            lambda: hello(peer_id), self._on_message, self.events.put_nowait, dial_timeout_s=5.0
        )

    async def next_event(self) -> Message | Connection:
        return await asyncio.wait_for(self.events.get(), PATIENCE_S)

    def _on_message(self, connection: Connection, message: Message) -> None:
        if isinstance(message, Failed):
            raise RuntimeError(message.reason)
        self.events.put_nowait(message)


@asynccontextmanager
async def node(peer_id: str = "d") -> AsyncIterator[Node]:
    made = Node(peer_id)
    try:
        yield made
    finally:
        await made.links.close()


@asynccontextmanager
async def serving(served: Node) -> AsyncIterator[WorkerAddress]:
    """A worker ``w`` whose incoming links are ``served``'s."""
    server = LinkServer()
    await server.start("127.0.0.1", 0, LINK_KEY, lambda: hello("w"), served.links.serve)
    try:
        yield WorkerAddress(
            worker_id=WorkerId("w"), host="127.0.0.1", port=server.port, link_key=LINK_KEY
        )
    finally:
        await server.close()


async def test_concurrent_callers_share_one_dial_and_later_ones_the_link() -> None:
    async with listening() as (listener, address), node() as dialler:
        links = await asyncio.gather(*(dialler.links.get(address) for _ in range(20)))
        links.append(await dialler.links.get(address))
        assert len(set(links)) == 1
        await listener.next_link()
        assert listener.taken.empty()


async def test_messages_are_delivered_in_order() -> None:
    async with listening() as (listener, address), node() as dialler:
        await dialler.links.get(address)
        theirs = await listener.next_link()
        sent = [Withdraw(lease_id=str(i)) for i in range(50)]
        for message in sent:
            theirs.send(message)
        assert [await dialler.next_event() for _ in sent] == sent


async def test_a_lost_link_is_told_once_and_dialled_again_on_demand() -> None:
    async with listening() as (listener, address), node() as dialler:
        first = await dialler.links.get(address)
        await (await listener.next_link()).close()
        assert await dialler.next_event() is first
        assert first.is_closed
        second = await dialler.links.get(address)
        assert second is not first
        (await listener.next_link()).send(Withdraw(lease_id="after"))
        assert await dialler.next_event() == Withdraw(lease_id="after")
        assert dialler.events.empty()


async def test_a_failed_dial_fails_all_its_callers_and_the_next_call_dials_again() -> None:
    listener = Listener()
    address = await listener.start()
    await listener.server.close()
    async with node() as dialler:
        calls = (dialler.links.get(address) for _ in range(3))
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, LinkError)
        again = Listener()
        await again.start(port=address.port)
        assert (await dialler.links.get(address)).peer_id == "w"
        await again.server.close()
        assert isinstance(await dialler.next_event(), Connection)


async def test_a_refused_key_is_a_refusal() -> None:
    async with listening() as (_, address), node() as dialler:
        with pytest.raises(LinkRefusedError, match="link key"):
            await dialler.links.get(replace(address, link_key=b"no"))


async def test_a_caller_that_gives_up_takes_the_link_from_nobody() -> None:
    async with listening() as (_, address), node() as dialler:
        impatient = asyncio.create_task(dialler.links.get(address))
        patient = asyncio.create_task(dialler.links.get(address))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).peer_id == "w"
        assert impatient.cancelled()


async def test_both_ends_can_be_peer_links() -> None:
    async with node("w") as worker, node("d") as dialler, serving(worker) as address:
        link = await dialler.links.get(address)
        link.send(Withdraw(lease_id="there"))
        assert await worker.next_event() == Withdraw(lease_id="there")
        await link.close()
        lost = await worker.next_event()
        assert isinstance(lost, Connection)
        assert lost.peer_id == "d"


async def test_a_peer_that_dials_again_replaces_its_older_link_after_its_loss_was_told() -> None:
    async with node("w") as worker, serving(worker) as address:
        older = await dial(address, hello("d"), PATIENCE_S)
        older.send(Withdraw(lease_id="older"))
        assert await worker.next_event() == Withdraw(lease_id="older")
        newer = await dial(address, hello("d"), PATIENCE_S)
        newer.send(Withdraw(lease_id="newer"))
        lost = await worker.next_event()
        assert isinstance(lost, Connection)
        assert await worker.next_event() == Withdraw(lease_id="newer")
        assert [message async for message in older.messages()] == []
        await newer.close()


async def test_an_error_in_a_handler_ends_that_link_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with node("w") as worker, serving(worker) as address:
        bad = await dial(address, hello("bad"), PATIENCE_S)
        good = await dial(address, hello("good"), PATIENCE_S)
        bad.send(Failed(request_id="r", attempt=0, reason="out of order"))
        lost = await worker.next_event()
        assert isinstance(lost, Connection)
        assert lost.peer_id == "bad"
        assert "out of order" in caplog.text
        good.send(Withdraw(lease_id="l"))
        assert await worker.next_event() == Withdraw(lease_id="l")
        await bad.close()
        await good.close()


async def test_closing_tells_no_loss_and_lets_nobody_dial() -> None:
    async with listening() as (_, address), node() as dialler:
        await dialler.links.get(address)
        await dialler.links.close()
        assert dialler.events.empty()
        with pytest.raises(LinkError, match="closing"):
            await dialler.links.get(address)


async def test_closing_ends_a_dial_with_a_link_error() -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_listening(say_nothing) as port, node() as dialler:
        address = WorkerAddress(
            worker_id=WorkerId("w"), host="127.0.0.1", port=port, link_key=LINK_KEY
        )
        call = asyncio.create_task(dialler.links.get(address))
        await asyncio.sleep(0.05)
        await dialler.links.close()
        with pytest.raises(LinkError, match="closing"):
            await call
