"""Reads a model's files out of another worker, before there is a worker here.

Every chunk has its checksum, and no wait is without an end: whatever fails is a TransferError or a
LinkError, after which the disk is there.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

from pdray.core.errors import LinkError, TransferError
from pdray.core.placement import WorkerAddress
from pdray.link.connection import dial
from pdray.link.messages import (
    WIRE_VERSION,
    AskChunk,
    AskFiles,
    Hello,
    LentChunk,
    LentFile,
    LentFiles,
)
from pdray.worker.file_slots import NUM_SLOTS, SLOT_BYTES, FileSlots

T = TypeVar("T")

DIAL_TIMEOUT_S = 5.0
STALL_S = 15.0
"""No chunk takes so long, nor the first read of a peer, which makes the connection."""

Take = Callable[[int, memoryview], None]
"""Gets a chunk's offset in its file, and its bytes, which are good for the call. In a thread."""


class LentModel:
    """Another worker's files, for as long as it is entered. Lives on the event loop."""

    files: tuple[LentFile, ...]

    def __init__(self, address: WorkerAddress, *, reader_id: str, transport: str) -> None:
        self._address = address
        self._reader_id = reader_id
        self._transport = transport
        self._answer: asyncio.Future[LentFiles] = asyncio.get_running_loop().create_future()
        self._chunks: dict[int, asyncio.Future[LentChunk]] = {}

    async def __aenter__(self) -> LentModel:
        """Raises TransferError where the peer does not lend, LinkError where it is not there."""
        self._connection = await dial(self._address, self._hello(), DIAL_TIMEOUT_S)
        self._hearing = asyncio.get_running_loop().create_task(self._hear())
        self._slots: FileSlots | None = None
        try:
            self._connection.send(AskFiles())
            making = asyncio.to_thread(FileSlots.make, self._transport, self._reader_id)
            self._slots = await making
            await self._accept(await self._within(self._answer))
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._leave()

    async def read(self, file: int, offsets: Iterable[int], take: Take) -> None:
        """A chunk from each offset on, in any order. Raises TransferError and LinkError, and what
        ``take`` raises."""
        left = iter(offsets)

        async def through(slot: int) -> None:
            for offset in left:
                await self._read_chunk(file, offset, slot, take)

        tasks = [asyncio.ensure_future(through(slot)) for slot in range(NUM_SLOTS)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _read_chunk(self, file: int, offset: int, slot: int, take: Take) -> None:
        assert self._slots is not None
        lent = self._chunks[slot] = asyncio.get_running_loop().create_future()
        self._connection.send(AskChunk(file=file, offset=offset, slot=slot))
        if self._hearing.done():
            raise LinkError(f"the link to {self._peer_id} is lost")
        chunk = await self._within(lent)
        if chunk.failure is not None:
            raise TransferError(f"{self._peer_id}: {chunk.failure}")
        pull = self._slots.transfer.pull(self._peer_id, [slot], [slot], flow=str(slot))
        await self._within(asyncio.wrap_future(pull))
        data = self._slots.view(slot)[: self.files[file].num_bytes - offset]
        if await asyncio.to_thread(zlib.crc32, data) != chunk.checksum:
            raise TransferError(f"what {self._peer_id} has read of its file is not what came here")
        await asyncio.to_thread(take, offset, data)

    async def _accept(self, answer: LentFiles) -> None:
        assert self._slots is not None
        if answer.refusal is not None:
            raise TransferError(f"{self._peer_id} does not lend its files: {answer.refusal}")
        if (answer.num_slots, answer.slot_bytes) != (NUM_SLOTS, SLOT_BYTES):
            raise TransferError(f"{self._peer_id} lends in pieces of another size")
        self.files = answer.files
        adding = self._slots.transfer.add_peer(self._peer_id, answer.transfer_description)
        await self._within(asyncio.wrap_future(adding))

    async def _within(self, future: asyncio.Future[T]) -> T:
        try:
            return await asyncio.wait_for(future, STALL_S)
        except TimeoutError as error:
            raise TransferError(f"{self._peer_id} does not answer within {STALL_S:g} s") from error

    async def _hear(self) -> None:
        failure = LinkError(f"the link to {self._peer_id} is closed")
        try:
            async for message in self._connection.messages():
                if isinstance(message, LentFiles) and not self._answer.done():
                    self._answer.set_result(message)
                elif isinstance(message, LentChunk):
                    chunk = self._chunks.pop(message.slot, None)
                    if chunk is not None and not chunk.done():
                        chunk.set_result(message)
        except LinkError as error:
            failure = error
        _fail(self._answer, failure)
        for waiting in self._chunks.values():
            _fail(waiting, failure)

    async def _leave(self) -> None:
        await self._connection.close()
        await asyncio.wait({self._hearing})
        if self._slots is not None:
            self._slots.close()

    @property
    def _peer_id(self) -> str:
        return self._address.worker_id

    def _hello(self) -> Hello:
        return Hello(
            wire_version=WIRE_VERSION,
            peer_id=self._reader_id,
            pool="starting",
            node_group=None,
            layout_digest=None,
            layout_text=None,
            transfer_description=None,
        )


def _fail(waiting: asyncio.Future[T], error: LinkError) -> None:
    if not waiting.done():
        waiting.set_exception(error)
        waiting.exception()  # whoever waited for it may have gone
