"""The tier in host memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pdray.kvcache.host_memory import map_host_memory
from pdray.kvcache.storage import KVStorage
from pdray.kvcache.tiers.entries import TierEntries, TierEntry


class HostTier:
    """A Tier. Its memory is taken when it is made; beside a CUDA device it is pinned, and copies
    have a stream of their own: they wait for no step, and nobody may touch their blocks before
    they return."""

    name = "host"

    def __init__(self, storage: KVStorage, num_bytes: int) -> None:
        self.entries = TierEntries(max(1, num_bytes // storage.block_bytes))
        self.block_bytes = storage.block_bytes
        self._storage = storage
        size = self.entries.num_slots * storage.block_bytes
        self._stream: torch.cuda.Stream | None = None
        if storage.device_id is None:
            memory = torch.frombuffer(map_host_memory(size), dtype=torch.uint8)
        else:
            memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._stream = torch.cuda.Stream(storage.device_id)
        self._rows = memory.view(self.entries.num_slots, storage.block_bytes)

    def save(self, block_ids: Sequence[int], entries: Sequence[TierEntry]) -> None:
        """The bytes of these blocks are here when it returns."""
        with torch.cuda.stream(self._stream):
            for block_id, entry in zip(block_ids, entries, strict=True):
                self._rows[entry.slot].copy_(self._storage.block(block_id), non_blocking=True)
        self._finish()

    def load(self, entries: Sequence[TierEntry], block_ids: Sequence[int]) -> list[bool]:
        self.fill([self._rows[entry.slot] for entry in entries], block_ids)
        return [True] * len(entries)

    def fill(self, rows: Sequence[torch.Tensor], block_ids: Sequence[int]) -> None:
        """Blocks of the device from any host memory."""
        with torch.cuda.stream(self._stream):
            for row, block_id in zip(rows, block_ids, strict=True):
                self._storage.block(block_id).copy_(row, non_blocking=True)
        self._finish()

    def row(self, entry: TierEntry) -> np.ndarray:
        """Its bytes, to be read."""
        row: np.ndarray = self._rows[entry.slot].numpy()
        return row

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
