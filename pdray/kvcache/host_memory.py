"""Memory on the host, in huge pages where the system has them."""

from __future__ import annotations

import mmap


def map_host_memory(num_bytes: int) -> mmap.mmap:
    """Bytes that are zero, start at a page, and take memory only where they are written."""
    # Private, or a forked child would share them.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # What is read here and there misses the TLB less often.
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
