"""Memory on the host, in huge pages where the system has them, and there before it is used."""

from __future__ import annotations

import errno
import mmap

_MADV_POPULATE_WRITE = 23
"""From Linux 5.14 on; Python has no name for it."""
_STEP_BYTES = 256 << 20
"""A fraction of a second: madvise keeps Python's lock, and others have to say that they live."""


def map_host_memory(num_bytes: int) -> mmap.mmap:
    """Bytes that are zero and start at a page. The system gives the pages now: when it does so
    while a block is filled, a handoff takes up to ten times as long."""
    # Private, or a forked child would share them.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # What is read here and there misses the TLB less often.
    memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        for start in range(0, num_bytes, _STEP_BYTES):
            memory.madvise(_MADV_POPULATE_WRITE, start, min(_STEP_BYTES, num_bytes - start))
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older system's pages come one by one
            raise
    return memory
