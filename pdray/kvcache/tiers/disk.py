"""The tier in a file: its own folder, a header and a checksum before each block.

A block of a name always has the same bytes, and every slot says what is in it: so a torn write,
a slot that was given up and a worker that was killed leave nothing that could be taken for
something else. What was written is handed to the system, not forced to the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from pdray.core.errors import TransferError
from pdray.kvcache.tiers.base import BlockFile, Move, OpenFile
from pdray.kvcache.tiers.entries import TierEntries, TierEntry
from pdray.kvcache.tiers.folder import TierFolder
from pdray.kvcache.tiers.host import HostTier
from pdray.kvcache.tiers.slot_header import (
    HEADER_BYTES,
    SlotHeader,
    checksum_of,
    pack_header,
    unpack_header,
)

logger = logging.getLogger(__name__)

BATCH_BYTES = 4 * 2**20
"""Moved at a time: what an urgent read may have to wait for."""


class DiskTier:
    """A Tier. One thread makes all calls; ``entries`` is guarded by its owner's lock. Blocks go
    to the device through a buffer in host memory, where they are checked."""

    name = "disk"

    def __init__(
        self,
        folder: TierFolder,
        host: HostTier,
        *,
        num_bytes: int,
        block_bytes: int,
        layout_digest: str,
        open_file: OpenFile,
    ) -> None:
        """Raises TransferError where the file cannot be opened."""
        self._folder = folder
        self._host = host
        self._layout_digest = bytes.fromhex(layout_digest)
        self._block_bytes = block_bytes
        self._slot_bytes = -(-(HEADER_BYTES + block_bytes) // HEADER_BYTES) * HEADER_BYTES
        self.entries = TierEntries(max(1, num_bytes // self._slot_bytes))
        self.batch_blocks = max(1, BATCH_BYTES // self._slot_bytes)
        self._buffer = np.zeros((self.batch_blocks, self._slot_bytes), dtype=np.uint8)
        self._file: BlockFile = open_file(
            folder.file,
            buffer_address=self._buffer.ctypes.data,
            buffer_bytes=self._buffer.nbytes,
        )

    def close(self) -> None:
        self._file.close()
        self._folder.close()

    # What an earlier worker left

    def find_entries(self, now: float) -> None:
        """Reads all headers. ``now`` counts seconds since 1970."""
        num_slots = min(self.entries.num_slots, self._file.num_bytes // self._slot_bytes)
        kept: list[tuple[float, TierEntry]] = []
        for start in range(0, num_slots, self.batch_blocks):
            slots = range(start, min(start + self.batch_blocks, num_slots))
            for slot, header in zip(slots, self._read_headers(slots), strict=True):
                if header is None or header.is_over(now) or header.name in self.entries:
                    continue
                entry = self.entries.add(header.name, slot)
                assert entry is not None
                self.entries.unpin(entry)
                if header.keep_until is not None:
                    kept.append((header.keep_until, entry))
        for keep_until, entry in sorted(kept, key=lambda each: each[0]):
            self.entries.keep(entry, keep_until)
        logger.info("disk tier: %d blocks found in %s", len(self.entries), self._folder.path)

    def _read_headers(self, slots: Sequence[int]) -> list[SlotHeader | None]:
        is_read = self._read(slots, HEADER_BYTES)
        return [
            unpack_header(self._buffer[row].data, self._layout_digest) if is_good else None
            for row, is_good in enumerate(is_read)
        ]

    # Blocks

    def store(self, entries: Sequence[TierEntry], rows: Sequence[np.ndarray]) -> None:
        """Blocks' bytes into pinned entries, up to ``batch_blocks``. Raises TransferError: the
        entries are good for nothing then."""
        for place, entry, row in zip(self._buffer, entries, rows, strict=False):
            place[HEADER_BYTES : HEADER_BYTES + self._block_bytes] = row
            header = SlotHeader(entry.name, entry.keep_until, checksum_of(row.data))
            place[:HEADER_BYTES] = self._packed(header)
        self._write(entries, self._slot_bytes)

    def store_ends(self, entries: Sequence[TierEntry]) -> None:
        """Sessions keep these longer than was written. Raises TransferError."""
        for start in range(0, len(entries), self.batch_blocks):
            batch = entries[start : start + self.batch_blocks]
            headers = self._read_headers([entry.slot for entry in batch])
            known = [entry for entry, header in zip(batch, headers, strict=True) if header]
            for place, entry, header in zip(
                self._buffer, known, filter(None, headers), strict=False
            ):
                prolonged = SlotHeader(header.name, entry.keep_until, header.checksum)
                place[:HEADER_BYTES] = self._packed(prolonged)
            self._write(known, HEADER_BYTES)

    def erase(self, entries: Sequence[TierEntry]) -> None:
        """Nobody will find them again, whoever comes. Raises TransferError."""
        self._buffer[:, :HEADER_BYTES] = 0
        for start in range(0, len(entries), self.batch_blocks):
            self._write(entries[start : start + self.batch_blocks], HEADER_BYTES)

    def load(self, entries: Sequence[TierEntry], block_ids: Sequence[int]) -> list[bool]:
        results: list[bool] = []
        for start in range(0, len(entries), self.batch_blocks):
            batch = entries[start : start + self.batch_blocks]
            is_good = [
                is_read and self._holds(row, entry)
                for row, (entry, is_read) in enumerate(
                    zip(batch, self._read([each.slot for each in batch]), strict=True)
                )
            ]
            good = [row for row in range(len(batch)) if is_good[row]]
            self._host.fill(
                [torch.from_numpy(self._data(row)) for row in good],
                [block_ids[start + row] for row in good],
            )
            results += is_good
        return results

    def _holds(self, row: int, entry: TierEntry) -> bool:
        header = unpack_header(self._buffer[row].data, self._layout_digest)
        if header is None or header.name != entry.name:
            return False
        return checksum_of(self._data(row).data) == header.checksum

    def _data(self, row: int) -> np.ndarray:
        data: np.ndarray = self._buffer[row, HEADER_BYTES : HEADER_BYTES + self._block_bytes]
        return data

    def _packed(self, header: SlotHeader) -> np.ndarray:
        return np.frombuffer(pack_header(header, self._layout_digest), dtype=np.uint8)

    # The file

    def _read(self, slots: Sequence[int], num_bytes: int | None = None) -> list[bool]:
        """Up to ``batch_blocks`` slots into the buffer's rows; which of them could be read."""
        moves = self._moves(slots, num_bytes or self._slot_bytes)
        try:
            self._file.read(moves)
        except TransferError:  # which of them is at fault is not said
            return [self._read_one(move) for move in moves]
        return [True] * len(moves)

    def _read_one(self, move: Move) -> bool:
        try:
            self._file.read([move])
        except TransferError as error:
            logger.warning("disk tier: a block is lost: %s", error)
            return False
        return True

    def _write(self, entries: Sequence[TierEntry], num_bytes: int) -> None:
        if entries:
            self._file.write(self._moves([entry.slot for entry in entries], num_bytes))

    def _moves(self, slots: Sequence[int], num_bytes: int) -> list[Move]:
        return [
            Move(slot * self._slot_bytes, row * self._slot_bytes, num_bytes)
            for row, slot in enumerate(slots)
        ]
