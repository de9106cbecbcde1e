"""Moving KV blocks within a device: right, and how near to a plain copy.

A caller brings ``seconds``, which times an action.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from pdray.kvcache.block_copy import TorchCopier, block_copier

Seconds = Callable[[Callable[[], object]], float]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK_ELEMENTS = 256 * 1024


def wrong_moves(device: torch.device) -> list[str]:
    """Pairs of dtypes for which the device's copier and plain torch do not agree to the bit."""
    copier, reference = block_copier(device), TorchCopier()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(64, generator=generator)[:20].to(device)
    wrong = []
    for source, target in itertools.product(DTYPES, repeat=2):
        # Rows of 24 elements more than a program's share: an end that is not full.
        arena = torch.randn(64, 8192 * 3 + 24, generator=generator).to(device, source)
        outs = []
        for each in (copier, reference):
            staging = torch.zeros(len(ids), arena.shape[1], dtype=target, device=device)
            moved = arena.clone()
            each.gather(moved, ids, staging)
            each.scatter(staging, moved, ids.flip(0))
            each.move(moved, ids[:5].contiguous(), moved, ids[10:15].contiguous())
            # As blocks of unlike layouts are converted: short rows, by ids on both sides.
            rows, short = arena[:, :8192].reshape(-1, 256), torch.zeros_like(staging[:, :8192])
            short = short.reshape(-1, 256)
            each.move(rows, ids * 3, short, ids.flip(0))
            outs.append((staging, moved, short))
        if not all(torch.equal(ours, theirs) for ours, theirs in zip(*outs, strict=True)):
            wrong.append(f"{source} to {target}")
    return wrong


def copy_bytes_per_s(
    device: torch.device, seconds: Seconds, *, num_blocks: int, target: torch.dtype
) -> dict[str, float]:
    """Read and written bytes together, of half the blocks of a bf16 arena of ``num_blocks``, in
    no order: by the kind of move."""
    arena = torch.randn(BLOCK_ELEMENTS, device=device).to(torch.bfloat16).repeat(num_blocks, 1)
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).to(device)
    half = num_blocks // 2
    ids, others = order[:half].contiguous(), order[half : 2 * half].contiguous()
    staging = torch.zeros(half, BLOCK_ELEMENTS, dtype=target, device=device)
    copier = block_copier(device)
    moved = half * BLOCK_ELEMENTS
    staged_bytes = moved * (arena.element_size() + staging.element_size())
    return {
        "gather": staged_bytes / seconds(lambda: copier.gather(arena, ids, staging)),
        "scatter": staged_bytes / seconds(lambda: copier.scatter(staging, arena, ids)),
        "copy": 2
        * moved
        * arena.element_size()
        / seconds(lambda: copier.move(arena, ids, arena, others)),
    }
