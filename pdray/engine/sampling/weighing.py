"""The weights of whole rows, by compiled loops where the device has them.

Suffixes as in blocks.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from pdray.engine.sampling.blocks import BlockMaxima
from pdray.engine.sampling.choosing import Weights
from pdray.engine.sampling.scratch import Scratch

if TYPE_CHECKING:
    from pdray.engine.sampling.compiled import CompiledRows


class RowWeights(Protocol):
    """exp((logit - best) / temperature) for every token of some rows."""

    totals_R: torch.Tensor
    """Float64."""

    def draw(self, noise_R: torch.Tensor) -> torch.Tensor:
        """[R] tokens: the inverse of the weights' cumulative sum."""


class CompiledWeights:
    """RowWeights that keep each block's sum, and make a token's weight again when it is drawn."""

    def __init__(
        self, rows: CompiledRows, best_R: torch.Tensor, temperatures_R: torch.Tensor
    ) -> None:
        self._rows = rows
        self._best_R = best_R.contiguous()
        self._temperatures_R = temperatures_R.contiguous()
        self._sums_RB = rows.add_weights(self._best_R, self._temperatures_R)
        self.totals_R = self._sums_RB.sum(-1)

    def draw(self, noise_R: torch.Tensor) -> torch.Tensor:
        return self._rows.draw(
            self._best_R, self._temperatures_R, self._sums_RB, noise_R.contiguous()
        )


def weigh(
    logits_SV: torch.Tensor,
    maxima: BlockMaxima,
    rows_R: torch.Tensor,
    temperatures_R: torch.Tensor,
    scratch: Scratch,
) -> RowWeights:
    """Of ``rows_R`` of the logits, which the maxima are of; good while neither changes."""
    best_R = maxima.best_S[rows_R]
    compiled = maxima.compiled(rows_R)
    if compiled is not None:
        return CompiledWeights(compiled, best_R, temperatures_R)
    shape = torch.Size((len(rows_R), logits_SV.shape[1]))
    out_RV = scratch.matrix(shape, logits_SV.device)
    if shape == logits_SV.shape:
        return Weights(torch.sub(logits_SV, best_R[:, None], out=out_RV), temperatures_R)
    torch.index_select(logits_SV, 0, rows_R, out=out_RV)
    return Weights(out_RV.sub_(best_R[:, None]), temperatures_R)
