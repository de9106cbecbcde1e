"""Bounded memory that a peer's blocks are read into when they must be converted, and the way from
there into the arena.

Tensor suffixes: S rows of a chamber, E elements of a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from pdray.kvcache.storage import TORCH_DTYPES, IntArray, KVStorage, allocate

CHAMBER_BYTES = 8 * 2**20
NUM_CHAMBERS = 4
"""So that some are read into while others are converted."""

IsDone = Callable[[], bool]


class Staging:
    """A few equal chambers on the storage's device, which somebody else hands out. On a CUDA device
    it writes into the arena on a stream of its own: those who wait ask whether that is done."""

    def __init__(self, storage: KVStorage, *, chamber_bytes: int = CHAMBER_BYTES) -> None:
        self.chamber_bytes = chamber_bytes
        self.num_chambers = NUM_CHAMBERS
        self._storage = storage
        self._memory = allocate(NUM_CHAMBERS * chamber_bytes, storage.device)
        self._stream = torch.cuda.Stream(storage.device) if storage.device_id is not None else None

    @property
    def num_bytes(self) -> int:
        return self._memory.numel()

    def address_of(self, chamber: int) -> int:
        return self._memory.data_ptr() + chamber * self.chamber_bytes

    def write(
        self,
        chamber: int,
        dtype: str,
        row_elements: int,
        source_ids: IntArray,
        row_ids: IntArray,
    ) -> IsDone:
        """Rows of a chamber, whose elements are of ``dtype``, to rows of the arena. The chamber
        must be left alone until that is done."""
        start = chamber * self.chamber_bytes
        chamber_E = self._memory[start : start + self.chamber_bytes].view(TORCH_DTYPES[dtype])
        num_rows = chamber_E.numel() // row_elements
        rows_SE = chamber_E[: num_rows * row_elements].view(num_rows, row_elements)
        return self._run(lambda: self._storage.write_rows(rows_SE, source_ids, row_ids))

    def clear(self, row_elements: int, row_ids: IntArray) -> IsDone:
        """Rows of the arena become zeros."""
        return self._run(lambda: self._storage.clear_rows(row_elements, row_ids))

    def _run(self, work: Callable[[], None]) -> IsDone:
        stream: AbstractContextManager[object] = contextlib.nullcontext()
        if self._stream is not None:
            stream = torch.cuda.stream(self._stream)
        with stream:
            work()
            return _at_once if self._stream is None else self._stream.record_event().query


def _at_once() -> bool:
    return True
