"""Exchanges between processes of one machine, through memory that they share.

Each rank copies its tensor into a slot of its own, all wait for all, and each reads what it
needs. There are two sets of slots, used in turn: a rank that is already at the next exchange
writes where nobody reads any more.
"""

from __future__ import annotations

import mmap
import os
import time

import torch

from pdray.engine.tensor_parallel.barrier_kernels import LINE_BYTES, arrive, have_arrived

_SLOT_BYTES = 1 << 20
"""Larger tensors go in several turns: what is summed is then still in the cores' caches."""

_NUM_LOOKS = 2000
"""Some ten microseconds between two offers of the core to others."""

_PATIENT_AFTER_S = 0.02
_TIMEOUT_S = 120.0
"""Longer than one rank can wait for another within a step; between steps none waits."""


def make_shared_memory(num_ranks: int) -> int:
    """A file descriptor for all of them; the memory goes with the last process that has it."""
    fd = os.memfd_create("pdray-ranks")
    os.ftruncate(fd, mmap.PAGESIZE + 2 * num_ranks * _SLOT_BYTES)
    return fd


class SharedMemoryExchanges:
    """``Exchanges`` of tensors in host memory."""

    def __init__(self, fd: int, rank: int, num_ranks: int) -> None:
        """``fd`` may be closed after it."""
        assert num_ranks * LINE_BYTES <= mmap.PAGESIZE, f"{num_ranks} ranks"
        memory = torch.frombuffer(mmap.mmap(fd, 0), dtype=torch.uint8)
        self._counters = memory.data_ptr()
        self._slots = memory[mmap.PAGESIZE :].view(2, num_ranks, _SLOT_BYTES)
        self._rank = rank
        self._num_ranks = num_ranks
        self._turn = 0
        self._is_aborted = False

    def all_reduce(self, tensor: torch.Tensor) -> None:
        for chunk in self._chunks(tensor):
            torch.sum(self._meet(chunk), dim=0, out=chunk)

    def gather(self, part: torch.Tensor, *, at_lead: bool) -> list[torch.Tensor]:
        wants_them = not at_lead or self._rank == 0
        parts = [torch.empty_like(part) for _ in range(self._num_ranks if wants_them else 0)]
        chunks_of_parts = zip(*(self._chunks(each) for each in parts), strict=True)
        for chunk in self._chunks(part):
            slots = self._meet(chunk)
            if wants_them:
                for target, slot in zip(next(chunks_of_parts), slots, strict=True):
                    target.copy_(slot)
        return parts

    def abort(self) -> None:
        self._is_aborted = True

    def _chunks(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        return list(tensor.view(-1).split(_SLOT_BYTES // tensor.element_size()))

    def _meet(self, chunk: torch.Tensor) -> torch.Tensor:
        """[ranks, elements]: every rank's chunk, good until the turn after the next."""
        self._turn += 1
        num_bytes = chunk.numel() * chunk.element_size()
        slots = self._slots[self._turn % 2, :, :num_bytes].view(chunk.dtype)
        slots[self._rank].copy_(chunk)
        arrive(self._counters, self._rank, self._turn)
        self._wait()
        return slots

    def _wait(self) -> None:
        if have_arrived(self._counters, self._num_ranks, self._turn, _NUM_LOOKS):
            return
        started = time.monotonic()
        while not have_arrived(self._counters, self._num_ranks, self._turn, _NUM_LOOKS):
            waited_s = time.monotonic() - started
            if self._is_aborted:
                raise RuntimeError("a rank has gone")
            if waited_s > _TIMEOUT_S:
                raise RuntimeError(f"a rank does not come within {_TIMEOUT_S:g} s")
            if waited_s > _PATIENT_AFTER_S:
                time.sleep(0.0001)
            else:
                os.sched_yield()
