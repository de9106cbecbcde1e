"""What a process holds, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of its own, mapped files left out. Raises OSError for a process that has ended."""
    return _status_bytes(pid, "RssAnon")


def peak_resident_bytes(pid: int | str = "self") -> int:
    """Since it began, with the pages of files that it had mapped."""
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int | str, field: str) -> int:
    """Zero for one that has ended and was not waited for yet."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    return 0
