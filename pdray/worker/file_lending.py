"""Lends the model's files to workers that start: puts pieces of them where those can read.

Each reader has a small arena of its own here, as KV goes through the KV arena. It is bounded,
whatever the model's size, and needs neither the files in memory nor the weights registered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from pdray.core.errors import TransferError
from pdray.engine.model_files import ModelFile
from pdray.link.connection import Connection
from pdray.link.messages import AskChunk, LentChunk, LentFile, LentFiles
from pdray.worker.file_slots import NUM_SLOTS, SLOT_BYTES, FileSlots
from pdray.worker.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_READERS = 2
"""At a time: a third one had better ask another worker, or its disk."""


@dataclass(slots=True, eq=False)
class _Loan:
    making: asyncio.Task[FileSlots]
    one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)


class FileLending:
    """Without ``files`` it refuses. Lives on the event loop."""

    def __init__(
        self, *, worker_id: str, transport: str, files: Sequence[ModelFile], tasks: Tasks
    ) -> None:
        self._worker_id = worker_id
        self._transport = transport
        self._files = files
        self._tasks = tasks
        self._loans: dict[Connection, _Loan] = {}

    def on_ask_files(self, reader: Connection) -> None:
        if (refusal := self._refusal(reader)) is not None:
            reader.send(LentFiles(refusal=refusal))
            return
        making = asyncio.to_thread(self._make_slots)
        loan = _Loan(asyncio.get_running_loop().create_task(making))
        self._loans[reader] = loan
        self._tasks.start(self._lend(reader, loan))

    def on_ask_chunk(self, reader: Connection, message: AskChunk) -> None:
        loan = self._loans.get(reader)
        if loan is None or not self._is_sensible(message):
            reader.send(LentChunk(slot=message.slot, checksum=0, failure="nothing such is lent"))
        else:
            self._tasks.start(self._fill(reader, loan, message))

    def on_lost(self, reader: Connection) -> None:
        """Nobody reads any more."""
        loan = self._loans.pop(reader, None)
        if loan is not None:
            loan.making.add_done_callback(_close)

    def close(self) -> None:
        for reader in list(self._loans):
            self.on_lost(reader)

    def _refusal(self, reader: Connection) -> str | None:
        if not self._files:
            return "it has no files of its own"
        if changed := [file.name for file in self._files if not file.is_unchanged]:
            return f"{', '.join(changed)}: not there any more, or not what was loaded"
        if len(self._loans) >= MAX_READERS or reader in self._loans:
            return f"{len(self._loans)} workers read its files already"
        return None

    def _is_sensible(self, message: AskChunk) -> bool:
        return (
            0 <= message.file < len(self._files)
            and 0 <= message.offset < self._files[message.file].num_bytes
            and 0 <= message.slot < NUM_SLOTS
        )

    def _make_slots(self) -> FileSlots:
        slots = FileSlots.make(self._transport, f"{self._worker_id}.files")
        slots.transfer.begin_lending()  # for as long as they are there
        return slots

    async def _lend(self, reader: Connection, loan: _Loan) -> None:
        try:
            transfer = (await loan.making).transfer
        except TransferError as error:
            self._loans.pop(reader, None)
            reader.send(LentFiles(refusal=str(error)))
            return
        logger.info("lends its model's files: reader=%s", reader.peer_id)
        files = [
            LentFile(name=each.name, num_bytes=each.num_bytes, is_weights=each.is_weights)
            for each in self._files
        ]
        reader.send(
            LentFiles(
                refusal=None,
                files=tuple(files),
                num_slots=NUM_SLOTS,
                slot_bytes=SLOT_BYTES,
                transfer_description=transfer.describe(),
            )
        )

    async def _fill(self, reader: Connection, loan: _Loan, message: AskChunk) -> None:
        view = (await loan.making).view(message.slot)
        checksum, failure = 0, None
        async with loan.one_by_one:  # those who decode here want the other cores
            file = self._files[message.file]
            try:
                checksum = await asyncio.to_thread(_read_chunk, file, message.offset, view)
            except OSError as error:
                failure = str(error)
        reader.send(LentChunk(slot=message.slot, checksum=checksum, failure=failure))


def _close(making: asyncio.Task[FileSlots]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()


def _read_chunk(file: ModelFile, offset: int, into: memoryview) -> int:
    """As much as fits, or is left; its CRC-32. Raises OSError, also where the file is not the one
    that was loaded."""
    with file.path.open("rb", buffering=0) as opened:
        size = min(len(into), file.num_bytes - offset)
        done = 0
        while done < size:
            count = os.preadv(opened.fileno(), [into[done:size]], offset + done)
            if count == 0:
                raise OSError(f"{file.path} has become shorter")
            done += count
    if not file.is_unchanged:
        raise OSError(f"{file.path} changed since it was loaded")
    return zlib.crc32(into[:size])
