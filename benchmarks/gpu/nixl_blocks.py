"""Blocks read through NIXL from one arena in the device's memory into another."""

from __future__ import annotations

import random
import time

import torch

from benchmarks.gpu.limits import synchronize

TRANSFER_BLOCKS = 512
BLOCK_BYTES = 512 * 1024


def check_transfer(device: torch.device) -> bool:
    """Also prints the speed beside that of a plain copy."""
    from pdray.transfer.base import KVRegion, TransferState
    from pdray.transfer.nixl import NixlTransport

    shape = (TRANSFER_BLOCKS, BLOCK_BYTES)
    source = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    target = torch.zeros(shape, dtype=torch.uint8, device=device)
    device_id = source.get_device() if source.is_cuda else None
    owner, reader = (
        NixlTransport(
            name,
            KVRegion(
                address=arena.data_ptr(),
                num_blocks=TRANSFER_BLOCKS,
                block_bytes=BLOCK_BYTES,
                device_id=device_id,
            ),
        )
        for name, arena in (("owner", source), ("reader", target))
    )
    reader.add_peer("owner", owner.describe())
    order = random.Random(0).sample(range(TRANSFER_BLOCKS), TRANSFER_BLOCKS)
    pull_s = 0.0
    for _ in range(3):  # the first one makes the connection
        started_at = time.perf_counter()
        transfer_id = reader.pull("owner", order, range(TRANSFER_BLOCKS))
        while (state := reader.poll(transfer_id)) is TransferState.PENDING:
            owner.progress()
        pull_s = time.perf_counter() - started_at
    is_equal = state is TransferState.DONE and torch.equal(target, source[order])
    copied = source.clone()  # its pages are there: the copy alone is timed
    synchronize(device)
    started_at = time.perf_counter()
    copied.copy_(source)
    synchronize(device)
    copy_s = time.perf_counter() - started_at
    num_gb = source.numel() / 1e9
    print(
        f"nixl: {num_gb / pull_s:.1f} GB/s in blocks of {BLOCK_BYTES // 1024} KiB, plain copy "
        f"{num_gb / copy_s:.1f} GB/s, bytes {'equal' if is_equal else 'DIFFER'}"
    )
    reader.close()
    owner.close()
    return is_equal
