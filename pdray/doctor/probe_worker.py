"""A worker's transfer without the worker: for who tries, or times, reads between processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pdray.transfer import create_transport
from pdray.transfer.base import KVRegion
from pdray.transfer.transfer_thread import TransferThread

if TYPE_CHECKING:
    import torch


@contextmanager
def probe_worker(
    name: str, device: str, num_blocks: int, block_bytes: int, *, fill: int
) -> Iterator[tuple[TransferThread, torch.Tensor]]:
    """One over memory that is really there, as a worker's KV is when it starts: ``fill`` in every
    byte of it. Raises TransferError."""
    import torch

    memory = torch.full((num_blocks, block_bytes), fill, dtype=torch.uint8, device=device)
    if memory.is_cuda:
        torch.cuda.synchronize(memory.device)
    region = KVRegion(
        address=memory.data_ptr(),
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        device_id=memory.device.index,
    )
    thread = TransferThread(lambda: create_transport("nixl", name, region))
    thread.start()
    try:
        yield thread, memory
    finally:
        thread.stop(drain_s=0.1)
