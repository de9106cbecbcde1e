"""The links of one process: dialled on demand, read by a task each, dialled again after a loss."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pdray.core.errors import LinkError
from pdray.core.placement import WorkerAddress
from pdray.link.connection import Connection, dial
from pdray.link.messages import Hello, Message

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Link:
    """``ended`` is set once its loss has been told."""

    connection: Connection
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class PeerLinks:
    """At most one outgoing and one incoming link per peer.

    ``on_message`` gets every message in order. ``on_lost`` gets each link that ended, but by
    ``close``, and always before a new one of the same peer and direction delivers anything. Both
    run in the loop and must not block.
    """

    def __init__(
        self,
        hello_factory: Callable[[], Hello],
        on_message: Callable[[Connection, Message], None],
        on_lost: Callable[[Connection], None],
        *,
        dial_timeout_s: float = 5.0,
    ) -> None:
        self._hello_factory = hello_factory
        self._on_message = on_message
        self._on_lost = on_lost
        self._dial_timeout_s = dial_timeout_s
        self._is_closing = False
        self._dialling: dict[str, asyncio.Task[Connection]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._outgoing: dict[str, _Link] = {}
        self._incoming: dict[str, _Link] = {}

    async def get(self, address: WorkerAddress) -> Connection:
        """The link to a worker, dialled if there is none; concurrent callers share one dial.
        Raises LinkError where it cannot be made."""
        worker_id = address.worker_id
        link = self._outgoing.get(worker_id)
        if link is not None and not link.connection.is_closed:
            return link.connection
        task = self._dialling.get(worker_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial(address))
            self._dialling[worker_id] = task
            task.add_done_callback(lambda done: self._end_dial(worker_id, done))
        # One caller that gives up must not take the link from the others.
        return await asyncio.shield(task)

    async def serve(
        self, connection: Connection, on_open: Callable[[Connection], None] | None = None
    ) -> None:
        """Reads an incoming link to its end; a LinkServer's ``on_connection``. An older link of
        the same peer is closed first: it dialled again, so that one is dead. ``on_open`` is called
        when that loss has been told, before the first message."""
        while (older := self._incoming.get(connection.peer_id)) is not None:
            await older.connection.close()
            await older.ended.wait()
        if on_open is not None:
            on_open(connection)
        await self._read(_Link(connection), self._incoming)

    async def close(self) -> None:
        """Closes all links; ``on_lost`` is called no more."""
        self._is_closing = True
        dialling = list(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        links = [*self._outgoing.values(), *self._incoming.values()]
        await asyncio.gather(*(link.connection.close() for link in links))
        await asyncio.gather(*self._reading, return_exceptions=True)

    async def _dial(self, address: WorkerAddress) -> Connection:
        older = self._outgoing.get(address.worker_id)
        if older is not None:
            await older.ended.wait()
        closing = f"no link to worker {address.worker_id}: this process is closing its links"
        if self._is_closing:
            raise LinkError(closing)
        try:
            connection = await dial(address, self._hello_factory(), self._dial_timeout_s)
        except asyncio.CancelledError as error:
            # Only ``close`` cancels a dial, never the callers, who know nothing of it.
            raise LinkError(closing) from error
        link = _Link(connection)
        task = asyncio.get_running_loop().create_task(self._read(link, self._outgoing))
        # In the table at once, not when its task first runs: the next caller looks there.
        self._outgoing[address.worker_id] = link
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        return connection

    def _end_dial(self, worker_id: str, task: asyncio.Task[Connection]) -> None:
        del self._dialling[worker_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("%s", error)

    async def _read(self, link: _Link, table: dict[str, _Link]) -> None:
        connection = link.connection
        table[connection.peer_id] = link
        try:
            async for message in connection.messages():
                self._on_message(connection, message)
        except LinkError as error:
            logger.warning("%s", error)
        except Exception:  # a task's outermost level: this link ends, the others go on
            logger.exception("link to %s ends by an error in its reader", connection.peer_id)
        finally:
            await connection.close()
            del table[connection.peer_id]
            if not self._is_closing:
                self._on_lost(connection)
            link.ended.set()
