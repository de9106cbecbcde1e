"""The GPUs of this machine, as torch sees them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    total_bytes: int
    free_bytes: int


def num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def is_here(device: str) -> bool:
    """``device`` as in a config."""
    if device == "cpu":
        return True
    return int(device.partition(":")[2] or 0) < num_gpus()


def torch_has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None


def can_access_peer(reader: int, owner: int) -> bool:
    import torch

    return torch.cuda.can_device_access_peer(reader, owner)


def memory_of_gpus() -> list[GpuMemory]:
    import torch

    readings = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return [GpuMemory(total_bytes=total, free_bytes=free) for free, total in readings]
