"""Moves KV blocks on a CUDA device by kernels of our own: 16 bytes per access, one pass.

Suffixes as in block_copy.py.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from pdray.kvcache.block_source import MAX_BLOCKS, PER_PROGRAM, THREADS, source_of

if TYPE_CHECKING:
    import cupy


class CupyCopier:
    """A BlockCopier. Blocks are multiples of 16 bytes on either side, as all are."""

    def gather(self, arena_BE: torch.Tensor, ids_C: torch.Tensor, out_CE: torch.Tensor) -> None:
        _move(arena_BE, out_CE, ids_C, None)

    def scatter(self, rows_CE: torch.Tensor, arena_BE: torch.Tensor, ids_C: torch.Tensor) -> None:
        _move(rows_CE, arena_BE, None, ids_C)

    def move(
        self,
        source_SE: torch.Tensor,
        from_C: torch.Tensor,
        target_TE: torch.Tensor,
        to_C: torch.Tensor,
    ) -> None:
        _move(source_SE, target_TE, from_C, to_C)


def _move(
    source_XE: torch.Tensor,
    target_XE: torch.Tensor,
    source_ids: torch.Tensor | None,
    target_ids: torch.Tensor | None,
) -> None:
    """Without ids, rows in order."""
    import cupy

    ids = target_ids if source_ids is None else source_ids
    assert ids is not None
    num_elements = source_XE.shape[1]
    assert num_elements == target_XE.shape[1], "blocks of two sizes"
    kernel, per_program = _kernel(_name(source_XE.dtype), _name(target_XE.dtype))
    assert num_elements % 8 == 0, f"a block of {num_elements} elements"
    stream = torch.cuda.current_stream(source_XE.device).cuda_stream
    with cupy.cuda.Device(source_XE.device.index), cupy.cuda.ExternalStream(stream):
        for start in range(0, len(ids), MAX_BLOCKS):
            count = min(MAX_BLOCKS, len(ids) - start)
            kernel(
                (-(-num_elements // per_program), count),
                (THREADS,),
                (
                    *_side(source_XE, source_ids, start),
                    *_side(target_XE, target_ids, start),
                    np.int64(num_elements),
                ),
            )


def _side(tensor_XE: torch.Tensor, ids: torch.Tensor | None, start: int) -> tuple[np.intp, ...]:
    """Address, of the ids (0: none), elements from row to row."""
    assert tensor_XE.stride(1) == 1
    assert tensor_XE.data_ptr() % 16 == 0
    stride = tensor_XE.stride(0)
    if ids is None:
        first_row = tensor_XE.data_ptr() + start * stride * tensor_XE.element_size()
        return np.intp(first_row), np.intp(0), np.intp(stride)
    assert ids.dtype == torch.int64
    assert ids.is_contiguous()
    return np.intp(tensor_XE.data_ptr()), np.intp(ids[start:].data_ptr()), np.intp(stride)


@cache
def _kernel(source: str, target: str) -> tuple[cupy.RawKernel, int]:
    """Compiled on its first use; and the elements that one program moves."""
    import cupy

    return cupy.RawKernel(source_of(source, target), "move_blocks"), PER_PROGRAM


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
