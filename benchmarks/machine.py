"""What a figure was measured on: without it the figure says little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("pdray", "ray", "torch", "transformers", "nixl", "aiohttp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """``num_cores`` are those that this process may use; ``versions`` those of its own
    environment, which a server elsewhere need not share."""

    date: str
    cpu: str
    num_cores: int
    memory_gib: float
    python: str
    versions: dict[str, str]


def describe_machine() -> Machine:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpu_name(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory_bytes / 2**30, 1),
        python=platform.python_version(),
        versions={name: version for name in PACKAGES if (version := _version(name))},
    )


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
