"""Moves KV blocks, or equal parts of them, within a device: out of the arena, into it, from one to
another; where the two sides' dtypes differ, converts on the way.

Tensor suffixes: B blocks of the arena, C blocks that are moved, E elements of a block; S and T rows
of a source and a target that are no whole blocks.
"""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch


class BlockCopier(Protocol):
    """Ids are int64 tensors on the arena's device. In the order of the current stream, without
    waiting for it; on a CPU done when it returns."""

    def gather(self, arena_BE: torch.Tensor, ids_C: torch.Tensor, out_CE: torch.Tensor) -> None:
        """Rows of ``out_CE``, which is contiguous, become the blocks of these ids."""

    def scatter(self, rows_CE: torch.Tensor, arena_BE: torch.Tensor, ids_C: torch.Tensor) -> None:
        """The other way; no id twice."""

    def move(
        self,
        source_SE: torch.Tensor,
        from_C: torch.Tensor,
        target_TE: torch.Tensor,
        to_C: torch.Tensor,
    ) -> None:
        """Rows of one to rows of the other; no row is written twice, or read and written. Rows
        are a multiple of 8 elements, and start at 16 bytes."""


class TorchCopier:
    """Any device."""

    def gather(self, arena_BE: torch.Tensor, ids_C: torch.Tensor, out_CE: torch.Tensor) -> None:
        if arena_BE.dtype == out_CE.dtype:
            torch.index_select(arena_BE, 0, ids_C, out=out_CE)
        else:
            out_CE.copy_(arena_BE[ids_C])

    def scatter(self, rows_CE: torch.Tensor, arena_BE: torch.Tensor, ids_C: torch.Tensor) -> None:
        arena_BE.index_copy_(0, ids_C, rows_CE.to(arena_BE.dtype))

    def move(
        self,
        source_SE: torch.Tensor,
        from_C: torch.Tensor,
        target_TE: torch.Tensor,
        to_C: torch.Tensor,
    ) -> None:
        rows_CE = source_SE.index_select(0, from_C)
        target_TE.index_copy_(0, to_C, rows_CE.to(target_TE.dtype))


def block_copier(device: torch.device) -> BlockCopier:
    """The fastest one that is installed."""
    if device.type == "cuda" and importlib.util.find_spec("cupy") is not None:
        from pdray.kvcache.block_kernels import CupyCopier

        return CupyCopier()
    return TorchCopier()
