"""The processes that `benchmarks/transfer.py` reads from, and the ways to read from them.

Every way moves the same blocks of one process's arena into another's; what each adds to the bytes
is what is compared.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import numpy.typing as npt
from nixl._api import nixl_agent, nixl_agent_config, nixl_prepped_dlist_handle

from pdray.transfer import create_transport
from pdray.transfer.base import KVRegion
from pdray.transfer.description import read_description
from pdray.transfer.transfer_thread import TransferThread

Blocks = npt.NDArray[np.uint8]
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """What both processes of a way have: so many blocks of so many bytes. ``ucx_tls`` is what UCX
    may use; None leaves it the choice."""

    num_blocks: int
    block_bytes: int
    ucx_tls: str | None

    def make(self) -> Blocks:
        blocks = np.empty((self.num_blocks, self.block_bytes), dtype=np.uint8)
        blocks[:] = np.arange(self.num_blocks, dtype=np.uint8)[:, None]
        return blocks


class Way(Protocol):
    """``read`` returns when block i of the owner's is here as block i. ``owner_cpu_s`` is the
    time on a core that the owner has taken so far."""

    blocks: Blocks

    def read(self, block_ids: Sequence[int]) -> None: ...

    def check(self, block_ids: Sequence[int]) -> None:
        """Raises ValueError where bytes do not arrive as they were."""

    def owner_cpu_s(self) -> float: ...


def check_read(way: Way, block_ids: Sequence[int]) -> None:
    way.blocks[:] = 255
    way.read(block_ids)
    for block_id in block_ids:
        if not (way.blocks[block_id] == block_id % 256).all():
            raise ValueError(f"block {block_id} did not arrive as it was")


class OwnerProcess:
    """Runs ``own`` in a process: it says what a reader needs, then answers every message with
    its CPU time until it is told to end."""

    def __init__(self, own: Callable[[Connection, Arena], None], arena: Arena) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_own, args=(own, theirs, arena), daemon=True)
        self.process.start()
        theirs.close()
        self.description: bytes = self._pipe.recv()

    def cpu_s(self) -> float:
        self._pipe.send("cpu")
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.close()
        self.process.join(PATIENCE_S)
        self.process.kill()
        self.process.join()


def _own(own: Callable[[Connection, Arena], None], pipe: Connection, arena: Arena) -> None:
    if arena.ucx_tls is not None:
        os.environ["UCX_TLS"] = arena.ucx_tls
    own(pipe, arena)


def _answer(pipe: Connection) -> bool:
    """False at the end."""
    try:
        pipe.recv()
    except EOFError:
        return False
    pipe.send(time.process_time())
    return True


# pdray's own


def _own_with_pdray(pipe: Connection, arena: Arena) -> None:
    blocks = arena.make()
    thread = TransferThread(lambda: create_transport("nixl", "owner", region_of(blocks)))
    thread.start()
    thread.begin_lending()
    pipe.send(thread.describe())
    while _answer(pipe):
        pass
    thread.stop()


class PdrayWay:
    """The transfer threads that workers use, on both sides."""

    def __init__(self, arena: Arena, owner: OwnerProcess) -> None:
        self._owner = owner
        self.blocks = np.zeros((arena.num_blocks, arena.block_bytes), dtype=np.uint8)
        region = region_of(self.blocks)
        self.thread = TransferThread(lambda: create_transport("nixl", "reader", region))
        self.thread.start()
        self.thread.add_peer("owner", owner.description).result(PATIENCE_S)

    def read(self, block_ids: Sequence[int]) -> None:
        self.thread.pull("owner", block_ids, block_ids).result(PATIENCE_S)

    def check(self, block_ids: Sequence[int]) -> None:
        check_read(self, block_ids)

    def owner_cpu_s(self) -> float:
        return self._owner.cpu_s()


@contextmanager
def pdray_way(arena: Arena) -> Iterator[Way]:
    owner = OwnerProcess(_own_with_pdray, arena)
    try:
        way = PdrayWay(arena, owner)
        try:
            yield way
        finally:
            way.thread.stop()
    finally:
        owner.close()


# NIXL alone: both sides poll without a pause, as nobody has anything else to do


def _own_with_nixl(pipe: Connection, arena: Arena) -> None:
    blocks = arena.make()
    transport = create_transport("nixl", "owner", region_of(blocks))
    pipe.send(transport.describe())
    while True:
        if pipe.poll(0) and not _answer(pipe):
            break
        transport.progress()
    transport.close()


class NixlWay:
    """NIXL's own calls for the same descriptors, with nothing of pdray around them."""

    def __init__(self, arena: Arena, owner: OwnerProcess) -> None:
        self._owner = owner
        self.blocks = np.zeros((arena.num_blocks, arena.block_bytes), dtype=np.uint8)
        region = region_of(self.blocks)
        peer = read_description(owner.description, peer_id="owner", transport="nixl")
        logging.getLogger("nixl").setLevel(logging.WARNING)
        config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self._agent = nixl_agent("raw-reader", config)
        rows = [(region.address, self.blocks.nbytes, 0, "")]
        self._agent.register_memory(rows, "DRAM", backends=["UCX"])
        name = self._agent.add_remote_agent(peer.access)
        name = name.decode() if isinstance(name, bytes) else name
        self._local = self._list("NIXL_INIT_AGENT", region.address, arena)
        self._remote = self._list(name, peer.address, arena)

    def _list(self, agent_name: str, address: int, arena: Arena) -> nixl_prepped_dlist_handle:
        row = (address, arena.block_bytes, 0, arena.block_bytes, arena.num_blocks)
        rows = np.array([row], dtype=np.uint64)
        return self._agent.prep_xfer_dlist(agent_name, rows, "DRAM", backends=["UCX"])

    def read(self, block_ids: Sequence[int]) -> None:
        self.move("READ", block_ids)

    def move(self, operation: str, block_ids: Sequence[int]) -> None:
        ids = np.asarray(block_ids, dtype=np.int32)
        handle = self._agent.make_prepped_xfer(
            operation, self._local, ids, self._remote, ids, backends=["UCX"]
        )
        state = self._agent.transfer(handle)
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise ValueError(f"NIXL ended a {operation} as {state}")
        handle.release()

    def check(self, block_ids: Sequence[int]) -> None:
        check_read(self, block_ids)

    def owner_cpu_s(self) -> float:
        return self._owner.cpu_s()


class PushWay(NixlWay):
    """The same with writes into the peer: what a push would gain over a pull."""

    def read(self, block_ids: Sequence[int]) -> None:
        self.move("WRITE", block_ids)

    def check(self, block_ids: Sequence[int]) -> None:
        """By reading back what was written."""
        for block_id in block_ids:
            self.blocks[block_id] = (block_id + 100) % 256
        self.move("WRITE", block_ids)
        self.blocks[:] = 255
        self.move("READ", block_ids)
        for block_id in block_ids:
            if not (self.blocks[block_id] == (block_id + 100) % 256).all():
                raise ValueError(f"block {block_id} was not written as it was")


@contextmanager
def nixl_way(arena: Arena) -> Iterator[Way]:
    owner = OwnerProcess(_own_with_nixl, arena)
    try:
        yield NixlWay(arena, owner)
    finally:
        owner.close()


@contextmanager
def push_way(arena: Arena) -> Iterator[Way]:
    owner = OwnerProcess(_own_with_nixl, arena)
    try:
        yield PushWay(arena, owner)
    finally:
        owner.close()


# Within one process, and through Ray's object store


class MemcpyWay:
    """Block by block from one array to another, in this process."""

    def __init__(self, arena: Arena) -> None:
        self._source = arena.make()
        self.blocks = np.zeros_like(self._source)

    def read(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            self.blocks[block_id] = self._source[block_id]

    def check(self, block_ids: Sequence[int]) -> None:
        check_read(self, block_ids)

    def owner_cpu_s(self) -> float:
        return 0.0


@contextmanager
def memcpy_way(arena: Arena) -> Iterator[Way]:
    yield MemcpyWay(arena)


class RayWay:
    """An actor puts the blocks into Ray's object store, the reader gets them and copies them to
    where they belong."""

    def __init__(self, arena: Arena) -> None:
        import ray

        @ray.remote(num_cpus=0)
        class Owner:
            def __init__(self) -> None:
                self._blocks = arena.make()

            def lend(self, block_ids: Sequence[int]) -> Blocks:
                return self._blocks[list(block_ids)]

            def cpu_s(self) -> float:
                return time.process_time()

        self._ray = ray
        self._owner = Owner.remote()  # type: ignore[attr-defined]
        self.blocks = np.zeros((arena.num_blocks, arena.block_bytes), dtype=np.uint8)

    def read(self, block_ids: Sequence[int]) -> None:
        self.blocks[list(block_ids)] = self._ray.get(self._owner.lend.remote(block_ids))

    def check(self, block_ids: Sequence[int]) -> None:
        check_read(self, block_ids)

    def owner_cpu_s(self) -> float:
        return float(self._ray.get(self._owner.cpu_s.remote()))


@contextmanager
def ray_way(arena: Arena) -> Iterator[Way]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield RayWay(arena)
    finally:
        ray.shutdown()


def region_of(blocks: Blocks) -> KVRegion:
    return KVRegion(
        address=blocks.ctypes.data,
        num_blocks=blocks.shape[0],
        block_bytes=blocks.shape[1],
        device_id=None,
    )
