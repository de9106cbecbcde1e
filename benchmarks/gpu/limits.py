"""What this device can do at best: the figures that all others are held against."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_REPEATS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of what the limits are measured on: much larger than any cache on a GPU."""

    num_bytes: int
    gemm_sizes: tuple[int, ...]


GPU_SIZES = Sizes(num_bytes=8 << 30, gemm_sizes=(4096, 8192))
CPU_SIZES = Sizes(num_bytes=64 << 20, gemm_sizes=(512,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    read_bytes_per_s: float
    copy_bytes_per_s: float
    """Read and written bytes together."""
    gemm_flops_per_s: float


def measure_limits(device: torch.device) -> Limits:
    sizes = CPU_SIZES if device.type == "cpu" else GPU_SIZES
    return Limits(
        read_bytes_per_s=_read_bytes_per_s(device, sizes.num_bytes),
        copy_bytes_per_s=_copy_bytes_per_s(device, sizes.num_bytes // 2),
        gemm_flops_per_s=max(_gemm_flops_per_s(device, size) for size in sizes.gemm_sizes),
    )


def seconds(device: torch.device, action: Callable[[], object], repeats: int = _REPEATS) -> float:
    """The best of some runs, the first of which is not counted."""
    action()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        started_at = time.perf_counter()
        action()
        synchronize(device)
        best = min(best, time.perf_counter() - started_at)
    return best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Of what nobody refers to any more: other processes, or much larger tensors, may need it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _read_bytes_per_s(device: torch.device, num_bytes: int) -> float:
    """By the fastest of some reductions: none reaches what the memory can do."""
    numbers = torch.ones(num_bytes // 4, device=device)
    matrix = numbers.view(torch.bfloat16).view(-1, 4096)
    vector = torch.ones(4096, dtype=torch.bfloat16, device=device)
    reductions: list[Callable[[], object]] = [
        numbers.sum,
        lambda: numbers.view(-1, 4096).amax(dim=1),
        lambda: matrix @ vector,
    ]
    return num_bytes / min(seconds(device, reduction) for reduction in reductions)


def _copy_bytes_per_s(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(device, lambda: target.copy_(source))


def _gemm_flops_per_s(device: torch.device, size: int) -> float:
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    out = torch.empty_like(left)
    return float(2 * size**3 / seconds(device, lambda: torch.mm(left, right, out=out)))
