"""The other end of a link, for tests: a worker ``w`` that keeps what it gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from pdray.core.errors import LinkError
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.link.connection import Connection, dial
from pdray.link.messages import WIRE_VERSION, Hello, Message
from pdray.link.server import LinkServer

PATIENCE_S = 20.0
LINK_KEY = b"k" * 32


def hello(peer_id: str, wire_version: int = WIRE_VERSION) -> Hello:
    return Hello(
        wire_version=wire_version,
        peer_id=peer_id,
        pool=None,
        node_group=None,
        layout_digest=None,
        layout_text=None,
        transfer_description=None,
    )


class Listener:
    """``taken`` has its links; ``received`` their messages, and None or a LinkError for each
    end. It reads only while ``may_read`` is set."""

    def __init__(self) -> None:
        self.server = LinkServer()
        self.taken: asyncio.Queue[Connection] = asyncio.Queue()
        self.received: asyncio.Queue[Message | LinkError | None] = asyncio.Queue()
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def start(self, wire_version: int = WIRE_VERSION, port: int = 0) -> WorkerAddress:
        await self.server.start(
            "127.0.0.1", port, LINK_KEY, lambda: hello("w", wire_version), self._serve
        )
        return WorkerAddress(
            worker_id=WorkerId("w"), host="127.0.0.1", port=self.server.port, link_key=LINK_KEY
        )

    async def next_link(self) -> Connection:
        return await asyncio.wait_for(self.taken.get(), PATIENCE_S)

    async def next_received(self) -> Message | LinkError | None:
        return await asyncio.wait_for(self.received.get(), PATIENCE_S)

    async def _serve(self, connection: Connection) -> None:
        await self.taken.put(connection)
        await self.may_read.wait()
        try:
            async for message in connection.messages():
                await self.received.put(message)
            await self.received.put(None)
        except LinkError as error:
            await self.received.put(error)


@asynccontextmanager
async def listening(
    wire_version: int = WIRE_VERSION,
) -> AsyncIterator[tuple[Listener, WorkerAddress]]:
    listener = Listener()
    try:
        yield listener, await listener.start(wire_version)
    finally:
        await listener.server.close()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Connection, Connection, Listener]]:
    """The dialer's end, the listener's end, and the listener."""
    async with listening() as (listener, address):
        dialled = await dial(address, hello("d"), PATIENCE_S)
        try:
            yield dialled, await listener.next_link(), listener
        finally:
            await dialled.close()


@asynccontextmanager
async def raw_listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that speaks as ``handle`` likes; yields its port, and ends with its handlers."""
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await handle(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.get_running_loop().create_task(run(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*tasks)
