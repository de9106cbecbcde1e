"""The other end of a worker's or a frontend's links, for tests: it says what the test tells it to,
and keeps what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.link.connection import Connection
from pdray.link.messages import WIRE_VERSION, Hello, Message
from pdray.link.peers import PeerLinks
from pdray.link.server import LinkServer

PATIENCE_S = 20.0
LINK_KEY = b"k" * 32

M = TypeVar("M", bound=Message)


class Peer:
    """A worker if it has a layout, else a frontend. ``links`` dials and is dialled."""

    def __init__(
        self, peer_id: str, *, layout_digest: str | None = None, description: bytes | None = None
    ) -> None:
        self.peer_id = peer_id
        self.lost: asyncio.Queue[Connection] = asyncio.Queue()
        self.links = PeerLinks(self._hello, self._on_message, self.lost.put_nowait)
        self._server = LinkServer()
        self._is_listening = False
        self._received: asyncio.Queue[tuple[Connection, Message]] = asyncio.Queue()
        self._layout_digest = layout_digest
        self._description = description

    def _hello(self) -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=self.peer_id,
            pool=None if self._layout_digest is None else "other",
            node_group=None if self._layout_digest is None else "elsewhere",
            layout_digest=self._layout_digest,
            layout_text=self._layout_digest,
            transfer_description=self._description,
        )

    def _on_message(self, connection: Connection, message: Message) -> None:
        self._received.put_nowait((connection, message))

    async def listen(self) -> WorkerAddress:
        """Its address, the same each time."""
        if not self._is_listening:
            self._is_listening = True
            await self._server.start("127.0.0.1", 0, LINK_KEY, self._hello, self.links.serve)
        return WorkerAddress(
            worker_id=WorkerId(self.peer_id),
            host="127.0.0.1",
            port=self._server.port,
            link_key=LINK_KEY,
        )

    async def receive(self, kind: type[M]) -> tuple[Connection, M]:
        """The next message, which must be of this kind, and the link it came on."""
        connection, message = await asyncio.wait_for(self._received.get(), PATIENCE_S)
        assert isinstance(message, kind), message
        return connection, message

    async def close(self) -> None:
        await self._server.close()
        await self.links.close()


@asynccontextmanager
async def closing(*peers: Peer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for peer in peers:
            await peer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)
