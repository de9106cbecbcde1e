"""How many bytes of KV cache a fraction of a device's memory is, once the weights are in."""

from __future__ import annotations

import os
from pathlib import Path

from pdray.core.errors import ConfigError

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))


def _cuda_memory_bytes(device: str) -> int:
    import torch

    from pdray.engine.device import check_device

    check_device(device)
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
