"""A process that owns an arena of random blocks and lends them through NIXL until it is told to
end, or killed."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from pdray.transfer import create_transport
from pdray.transfer.base import KVRegion
from pdray.transfer.transfer_thread import TransferThread

NUM_BLOCKS = 64
BLOCK_BYTES = 256 * 1024


def owner_blocks(seed: int) -> npt.NDArray[np.uint8]:
    size = (NUM_BLOCKS, BLOCK_BYTES)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def start_transfer_thread(worker_id: str, blocks: npt.NDArray[np.uint8]) -> TransferThread:
    region = KVRegion(
        address=blocks.ctypes.data,
        num_blocks=blocks.shape[0],
        block_bytes=blocks.shape[1],
        device_id=None,
    )
    thread = TransferThread(lambda: create_transport("nixl", worker_id, region))
    thread.start()
    return thread


class OwnerProcess:
    """``description`` is for the reader's ``add_peer``."""

    def __init__(self, seed: int) -> None:
        # Processes are forked from one that has imported nixl, which takes seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pytest", "nixl._api", "tests.owner_process"])
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, seed, os.environ.get("UCX_TLS"))
        self.process = context.Process(target=_own, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.description: bytes = self._pipe.recv()

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._pipe.close()


def _own(pipe: Connection, seed: int, ucx_tls: str | None) -> None:
    if ucx_tls is not None:
        os.environ["UCX_TLS"] = ucx_tls
    blocks = owner_blocks(seed)
    thread = start_transfer_thread("owner", blocks)
    thread.begin_lending()
    pipe.send(thread.describe())
    pipe.poll(None)
    thread.stop()
