"""The ranks of one worker as a group: what they compute together.

A process group of its own, not torch's default one, as one process may hold rank 0 of several
workers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GatherOptions, Store, Work

_TIMEOUT = timedelta(minutes=2)
"""Longer than one rank can wait for another within a step; between steps none waits."""


class _Exchanges(Protocol):
    """Of gloo and NCCL, what is used here: torch's own types leave it out."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Work: ...

    def allgather(self, parts: list[list[torch.Tensor]], part: list[torch.Tensor]) -> Work: ...

    def gather(
        self, parts: list[list[torch.Tensor]], part: list[torch.Tensor], options: GatherOptions
    ) -> Work: ...

    def abort(self) -> None: ...


class RankGroup:
    """One rank's end. Every rank makes the same calls in the same order; each ends when all have
    made it. A rank that dies is an error of the others' calls (gloo) or found out by ``abort``."""

    def __init__(
        self, *, rank: int, size: int, device: str, rendezvous: Callable[[], Store]
    ) -> None:
        """``rendezvous`` is called by ``connect``; the store that it returns is the same for all
        ranks."""
        self.rank = rank
        self.size = size
        self._device = device
        self._rendezvous = rendezvous
        self._group: _Exchanges | None = None

    def connect(self) -> None:
        """Returns when all ranks have called it."""
        store = self._rendezvous()
        make = _make_gloo if self._device == "cpu" else _make_nccl
        self._group = make(store, self.rank, self.size)

    def abort(self) -> None:
        """Ends a call that waits for a rank that will never come; from any thread."""
        if self._group is not None:
            self._group.abort()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, the same to the bit on each; in place."""
        tensor = tensor.contiguous()
        self._connected.allreduce([tensor]).wait()
        return tensor

    def gather_columns(self, part: torch.Tensor, width: int) -> torch.Tensor:
        """All ranks' parts side by side along the last dimension, ``width`` together: rank i has
        the i-th of equal slices, the last ones shorter where ``width`` does not divide."""
        part = self._padded(part, width)
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._connected.allgather([parts], [part]).wait()
        return torch.cat(parts, dim=-1)[..., :width]

    def gather_columns_at_lead(self, part: torch.Tensor, width: int) -> torch.Tensor:
        """As ``gather_columns`` on rank 0; the others get their own part back."""
        padded = self._padded(part, width)
        options = GatherOptions()
        options.rootRank = 0
        if self.rank:
            self._connected.gather([], [padded], options).wait()
            return part
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._connected.gather([parts], [padded], options).wait()
        return torch.cat(parts, dim=-1)[..., :width]

    def _padded(self, part: torch.Tensor, width: int) -> torch.Tensor:
        slice_width = -(-width // self.size)
        missing = slice_width - part.shape[-1]
        return torch.nn.functional.pad(part, (0, missing)) if missing else part.contiguous()

    @property
    def _connected(self) -> _Exchanges:
        assert self._group is not None, "the ranks are not connected yet"
        return self._group


def _make_gloo(store: Store, rank: int, size: int) -> _Exchanges:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = _TIMEOUT
    exchanges: _Exchanges = gloo(store, rank, size, options)
    return exchanges


def _make_nccl(store: Store, rank: int, size: int) -> _Exchanges:
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = _TIMEOUT
    exchanges: _Exchanges = nccl(store, rank, size, options)
    return exchanges
