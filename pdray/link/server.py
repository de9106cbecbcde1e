"""Where a process listens for links."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from pdray.core.errors import LinkError
from pdray.link.connection import READ_AHEAD_BYTES, Connection, set_socket_options
from pdray.link.handshake import prove_as_listener
from pdray.link.messages import Hello

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0


class LinkServer:
    """Takes links from whoever has the key; a stranger costs one handshake and a log line."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(
        self,
        host: str,
        port: int,
        link_key: bytes,
        hello_factory: Callable[[], Hello],
        on_connection: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """Listens on ``host``; port 0 takes a free one. Each link is ``on_connection``'s until
        that returns; then it is closed. Raises OSError where the address cannot be had."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = self._serve(reader, writer, link_key, hello_factory, on_connection)
            task = asyncio.get_running_loop().create_task(serving)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._server = await asyncio.start_server(accept, host, port, limit=READ_AHEAD_BYTES)

    @property
    def port(self) -> int:
        assert self._server is not None, "not started"
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Listens no more, and closes all links taken. May be called twice."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link_key: bytes,
        hello_factory: Callable[[], Hello],
        on_connection: Callable[[Connection], Awaitable[None]],
    ) -> None:
        connection = Connection(reader, writer)
        try:
            await self._greet(connection, reader, writer, link_key, hello_factory)
        except (LinkError, OSError, TimeoutError) as error:
            why = error if str(error) else f"no handshake within {HANDSHAKE_TIMEOUT_S} s"
            logger.warning("no link from %s: %s", writer.get_extra_info("peername"), why)
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        try:
            await on_connection(connection)
        except Exception:  # a task's outermost level: this link ends, the others go on
            logger.exception("link from %s ends by an error", connection.peer_id)
        finally:
            await connection.close()

    async def _greet(
        self,
        connection: Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link_key: bytes,
        hello_factory: Callable[[], Hello],
    ) -> None:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            set_socket_options(writer)
            await prove_as_listener(reader, writer, link_key)
            await connection.greet(hello_factory())
