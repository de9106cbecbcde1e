"""Exchanges between GPUs of one machine, through NCCL.

A process group of its own, not torch's default one, as one process may hold rank 0 of several
workers.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GatherOptions, Store, TCPStore, Work

_TIMEOUT = timedelta(minutes=2)
"""As in shared_memory.py."""


class _ProcessGroup(Protocol):
    """What is used of NCCL's: torch's own types leave it out."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Work: ...

    def allgather(self, parts: list[list[torch.Tensor]], part: list[torch.Tensor]) -> Work: ...

    def gather(
        self, parts: list[list[torch.Tensor]], part: list[torch.Tensor], options: GatherOptions
    ) -> Work: ...

    def abort(self) -> None: ...


def serve_store() -> tuple[Store, int]:
    """Where the ranks find each other, on a port of loopback that the system chose."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def reach_store(port: int) -> Store:
    return TCPStore("127.0.0.1", port, is_master=False)


class NcclExchanges:
    """``Exchanges`` of tensors in the memory of this rank's GPU."""

    def __init__(self, store: Store, rank: int, num_ranks: int) -> None:
        self._rank = rank
        self._num_ranks = num_ranks
        nccl: Any = dist.ProcessGroupNCCL
        options = nccl.Options()
        options._timeout = _TIMEOUT
        self._group: _ProcessGroup = nccl(store, rank, num_ranks, options)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self._group.allreduce([tensor]).wait()

    def gather(self, part: torch.Tensor, *, at_lead: bool) -> list[torch.Tensor]:
        if not at_lead:
            parts = [torch.empty_like(part) for _ in range(self._num_ranks)]
            self._group.allgather([parts], [part]).wait()
            return parts
        options = GatherOptions()
        options.rootRank = 0
        if self._rank:
            self._group.gather([], [part], options).wait()
            return []
        parts = [torch.empty_like(part) for _ in range(self._num_ranks)]
        self._group.gather([parts], [part], options).wait()
        return parts

    def abort(self) -> None:
        self._group.abort()
