"""Memory on the host, in huge pages where the system has them, and there before it is used."""

from __future__ import annotations

import errno
import mmap

_MADV_POPULATE_WRITE = 23
"""From Linux 5.14 on; Python has no name for it."""


def map_host_memory(num_bytes: int) -> mmap.mmap:
    """Bytes that are zero and start at a page. The system gives the pages now: when it does so
    while a block is filled, a handoff takes up to ten times as long."""
    # Private, or a forked child would share them.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # What is read here and there misses the TLB less often.
    memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older system's pages come one by one
            raise
    return memory
