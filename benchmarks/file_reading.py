"""What no loading can beat: a file's bytes read once in their order, and memory that a process
touches for the first time. And a way to have a file out of the system's page cache."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 8 << 20
_SAMPLE_BYTES = 1 << 20
"""From one byte that is looked for in the page cache to the next."""


def read_seconds(files: Iterable[Path]) -> float:
    """All of them, into one buffer."""
    buffer = bytearray(_CHUNK_BYTES)
    started_at = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started_at


def touch_seconds(num_bytes: int) -> float:
    """New memory, a byte in each page: the system has to find it and to make it zero."""
    num_pages = -(-num_bytes // mmap.PAGESIZE)
    values = bytes(num_pages)
    started_at = time.perf_counter()
    with mmap.mmap(-1, num_pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE) as memory:
        memory[:: mmap.PAGESIZE] = values
        return time.perf_counter() - started_at


def drop_from_cache(files: Iterable[Path]) -> bool:
    """Whether they are out of the page cache now; pages that somebody has mapped stay."""
    is_out = True
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            is_out &= not is_any_cached(file.fileno())
    return is_out


def is_any_cached(file_descriptor: int) -> bool:
    """Some page of it; True also where the file system cannot tell."""
    byte = bytearray(1)
    for offset in range(0, os.fstat(file_descriptor).st_size, _SAMPLE_BYTES):
        try:
            os.preadv(file_descriptor, [byte], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            continue
        except OSError:
            return True
        return True
    return False
