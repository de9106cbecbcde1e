"""Rows of a matrix of logits on a CPU, as the compiled loops take them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.engine import openmp
from pdray.engine.openmp import compile_body, launch
from pdray.engine.sampling import mask_kernels, maxima_kernels, row_kernels
from pdray.engine.sampling.blocks import BLOCK

is_available = openmp.is_available

BODIES = (
    mask_kernels.forbid,
    maxima_kernels.find_maxima,
    row_kernels.add_weights,
    row_kernels.draw,
    row_kernels.largest,
    row_kernels.count_above,
)


def compile_bodies() -> None:
    """Takes seconds where none of it is kept on disk: to be done before requests come."""
    for body in BODIES:
        compile_body(body)


def find_maxima(logits_SV: torch.Tensor) -> torch.Tensor:
    """[S, B] of bfloat16 ones."""
    assert logits_SV.dtype == torch.bfloat16, logits_SV.dtype
    assert logits_SV.is_contiguous(), "a matrix in pieces"
    num_rows, vocab_size = logits_SV.shape
    maxima_SB = logits_SV.new_empty(num_rows, -(-vocab_size // BLOCK))
    launch(
        compile_body(maxima_kernels.find_maxima),
        torch.get_num_threads(),
        (
            num_rows,
            vocab_size,
            logits_SV.data_ptr(),
            maxima_SB.data_ptr(),
        ),
    )
    return maxima_SB


def forbid(logits_SV: torch.Tensor, rows_R: torch.Tensor, masks_RW: NDArray[np.int32]) -> None:
    """In place. Bits as in masks.py; ``masks_RW`` is contiguous."""
    _check(logits_SV)
    launch(
        compile_body(mask_kernels.forbid),
        torch.get_num_threads(),
        (
            len(rows_R),
            logits_SV.shape[1],
            logits_SV.data_ptr(),
            rows_R.data_ptr(),
            masks_RW.shape[1],
            masks_RW.ctypes.data,
        ),
    )


class CompiledRows:
    """Good while neither the logits nor the maxima of their blocks change. Suffixes as in
    blocks.py."""

    def __init__(
        self, logits_SV: torch.Tensor, maxima_SB: torch.Tensor, rows_R: torch.Tensor
    ) -> None:
        _check(logits_SV)
        _check(maxima_SB)
        self._held = (logits_SV, maxima_SB, rows_R)
        self._shape = (len(rows_R), maxima_SB.shape[1])
        self._head = (
            len(rows_R),
            logits_SV.shape[1],
            logits_SV.data_ptr(),
            rows_R.data_ptr(),
            maxima_SB.data_ptr(),
        )

    def add_weights(self, best_R: torch.Tensor, temperatures_R: torch.Tensor) -> torch.Tensor:
        """[R, B] exp((logit - best) / temperature), added up over each block."""
        sums_RB = torch.empty(self._shape, dtype=torch.float64)
        self._run(row_kernels.add_weights, best_R, temperatures_R, sums_RB)
        return sums_RB

    def draw(
        self,
        best_R: torch.Tensor,
        temperatures_R: torch.Tensor,
        sums_RB: torch.Tensor,
        noise_R: torch.Tensor,
    ) -> torch.Tensor:
        token_ids_R = torch.empty(self._shape[0], dtype=torch.int64)
        self._run(row_kernels.draw, best_R, temperatures_R, sums_RB, noise_R, token_ids_R)
        return token_ids_R

    def largest(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, count] logits, best first, and their tokens; fewer than there are blocks. Past the
        tokens that are possible, token 0 at minus infinity."""
        logits_RK = torch.empty(self._shape[0], count)
        ids_RK = torch.empty(self._shape[0], count, dtype=torch.int64)
        self._run(row_kernels.largest, count, logits_RK, ids_RK)
        logits_RK, order_RK = logits_RK.sort(-1, descending=True)
        return logits_RK, ids_RK.gather(1, order_RK)

    def count_above(self, logits_R: torch.Tensor) -> torch.Tensor:
        counts_R = torch.empty(self._shape[0], dtype=torch.int64)
        self._run(row_kernels.count_above, logits_R, counts_R)
        return counts_R

    def _run(self, body: Callable[[int], None], *values: torch.Tensor | int) -> None:
        tail = [value if isinstance(value, int) else value.data_ptr() for value in values]
        assert all(isinstance(value, int) or value.is_contiguous() for value in values)
        launch(compile_body(body), torch.get_num_threads(), (*self._head, *tail))


def _check(matrix: torch.Tensor) -> None:
    assert matrix.dtype == torch.float32, matrix.dtype
    assert matrix.is_contiguous(), "a matrix in pieces"
