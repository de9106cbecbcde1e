"""How many bytes of KV cache a fraction of a device's memory is, once the weights are in."""

from __future__ import annotations

import os
from pathlib import Path

from pdray.core.errors import ConfigError

_CGROUP = Path("/sys/fs/cgroup")


def kv_cache_bytes_of_fraction(
    fraction: float, device: str, weights_bytes: int, num_ranks: int = 1
) -> int:
    """Bytes that are left of ``fraction`` of the memory of ``device`` ("cpu" is the host) after
    the model's weights, for each of the ranks: they share the host, and each has a GPU. Raises
    ConfigError where nothing is left, or there is no such device."""
    if device == "cpu":
        total = host_memory_bytes() // num_ranks
    else:
        total = _cuda_memory_bytes(device)
    weights = weights_bytes // num_ranks
    left = int(total * fraction) - weights
    if left <= 0:
        raise ConfigError(
            f"kv_memory_fraction = {fraction}: {device} has {total} bytes and the weights take "
            f"{weights}, so no memory is left for KV; accepted: a larger fraction"
        )
    return left


def host_memory_bytes() -> int:
    """The machine's memory, or what its container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _container_limit()
    return total if limit is None else min(total, limit)


def free_host_bytes() -> int:
    """What processes could take now, the system's caches included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = _container_limit()
    if limit is None:
        return free
    stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    caches = int(stat["active_file"]) + int(stat["inactive_file"])
    return min(free, limit - int((_CGROUP / "memory.current").read_text()) + caches)


def _container_limit() -> int | None:
    limit = _CGROUP / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    return None if text == "max" else int(text)


def _cuda_memory_bytes(device: str) -> int:
    import torch

    from pdray.engine.device import check_device

    check_device(device)
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
