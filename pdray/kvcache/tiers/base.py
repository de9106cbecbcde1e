"""A tier below the device's blocks: slots that each hold the bytes of one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pdray.kvcache.tiers.entries import TierEntries, TierEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class TierConfig:
    """Of one worker. ``disk_path`` is a folder on its machine; workers that are given the same
    one take a folder each below it. Sessions keep their blocks for ``session_ttl_s``."""

    host_bytes: int
    disk_bytes: int | None
    disk_path: Path | None
    session_ttl_s: float


class Tier(Protocol):
    """``entries`` says what is in its slots; whoever calls holds the lock that guards it, or pins
    for the entries that are read."""

    name: str
    entries: TierEntries

    def load(self, entries: Sequence[TierEntry], block_ids: Sequence[int]) -> list[bool]:
        """Fills these blocks of the device from pinned entries; False for each whose bytes are
        not those that were stored: its block is undefined then. Takes as long as it takes."""


@dataclass(frozen=True, slots=True)
class Move:
    """A stretch of bytes in the file and in the buffer."""

    file_offset: int
    buffer_offset: int
    num_bytes: int


class BlockFile(Protocol):
    """A file, and a buffer in host memory that bytes move to and from. One thread makes all
    calls; each returns when the bytes have moved."""

    num_bytes: int
    """Of the file as it was when it was opened."""

    def read(self, moves: Sequence[Move]) -> None:
        """Raises TransferError where not all bytes could be read: the buffer is undefined then."""

    def write(self, moves: Sequence[Move]) -> None:
        """Raises TransferError where not all bytes could be written: those of the file are
        undefined then."""

    def close(self) -> None: ...


class OpenFile(Protocol):
    """Opens or makes a file, over a buffer that outlives it."""

    def __call__(self, path: Path, *, buffer_address: int, buffer_bytes: int) -> BlockFile:
        """Raises TransferError."""
