"""The likeliest tokens of a row, found through the maxima of its blocks.

A vocabulary of 262,144 is read once, by the one reduction that is as fast as memory; what is
looked for then lies in the few blocks with the largest maxima. Exact.

Suffixes: S rows, R some of them, V vocabulary, B blocks, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pdray.engine.sampling.compiled import CompiledRows

BLOCK = 64
"""Tokens of a block."""


def reduce_blocks(reduce: Callable[..., torch.Tensor], values_SV: torch.Tensor) -> torch.Tensor:
    """[S, B]: ``torch.sum`` or ``torch.amax`` of each BLOCK of columns; the last may be shorter."""
    vocab_size = values_SV.shape[1]
    num_whole = vocab_size // BLOCK
    whole = values_SV[:, : num_whole * BLOCK].unflatten(1, (num_whole, BLOCK))
    reduced = reduce(whole, -1)
    if num_whole * BLOCK == vocab_size:
        return reduced
    rest = values_SV[:, num_whole * BLOCK :]
    return torch.cat([reduced, reduce(rest, -1, keepdim=True)], dim=1)


def block_columns(blocks: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., K] block numbers to the [..., K * BLOCK] columns in them, and which of those are
    past the vocabulary (their columns are its last one)."""
    offsets = torch.arange(BLOCK, device=blocks.device)
    columns = (blocks[..., None] * BLOCK + offsets).flatten(-2)
    return columns.clamp(max=vocab_size - 1), columns >= vocab_size


@dataclass(frozen=True, slots=True)
class Candidates:
    """The K likeliest tokens of some rows, best first."""

    logits_RK: torch.Tensor
    token_ids_RK: torch.Tensor
    is_whole: bool
    """They are the whole vocabulary."""


class BlockMaxima:
    """Of logits that do not change while it is used. ``best_S`` is each row's largest logit (a NaN
    is larger than any number) and ``best_ids_S`` its token, of equals the first."""

    def __init__(self, logits_SV: torch.Tensor) -> None:
        self._logits_SV = logits_SV
        self._maxima_SB = self._maxima()
        self.best_S, self.best_ids_S = self._best()

    def _maxima(self) -> torch.Tensor:
        if self._logits_SV.device.type == "cpu" and self._logits_SV.dtype == torch.bfloat16:
            from pdray.engine.sampling import compiled

            if compiled.is_available:
                return compiled.find_maxima(self._logits_SV.contiguous())
        return reduce_blocks(torch.amax, self._logits_SV)

    def _best(self) -> tuple[torch.Tensor, torch.Tensor]:
        blocks_S1 = self._maxima_SB.argmax(-1, keepdim=True)
        columns, is_past = block_columns(blocks_S1, self._logits_SV.shape[1])
        logits = self._logits_SV.gather(1, columns).masked_fill_(is_past, -torch.inf)
        best_S1 = logits.argmax(-1, keepdim=True)
        return logits.gather(1, best_S1)[:, 0], columns.gather(1, best_S1)[:, 0]

    def compiled(self, rows_R: torch.Tensor) -> CompiledRows | None:
        """The same rows for compiled loops, float32 ones; None where the device has no such."""
        if self._logits_SV.device.type != "cpu":
            return None
        from pdray.engine.sampling import compiled

        if not compiled.is_available:
            return None
        return compiled.CompiledRows(self._logits_SV, self._maxima_SB, rows_R)

    def largest(self, rows_R: torch.Tensor, count: int) -> Candidates:
        """``count`` tokens of each row. Which of equal last ones is not defined; a row of fewer
        tokens that are possible ends in some at minus infinity."""
        vocab_size = self._logits_SV.shape[1]
        if count >= vocab_size:
            logits, ids = self._logits_SV[rows_R].sort(-1, descending=True)
            return Candidates(logits, ids, is_whole=True)
        maxima_RB = self._maxima_SB[rows_R]
        if count * 4 >= maxima_RB.shape[1]:
            logits, ids = self._logits_SV[rows_R].topk(count)
            return Candidates(logits, ids, is_whole=False)
        compiled = self.compiled(rows_R)
        if compiled is not None:
            return Candidates(*compiled.largest(count), is_whole=False)
        blocks_RK = maxima_RB.topk(count, sorted=False).indices
        columns, is_past = block_columns(blocks_RK, vocab_size)
        logits = self._logits_SV[rows_R[:, None], columns].masked_fill_(is_past, -torch.inf)
        logits, places = logits.topk(count)
        return Candidates(logits, columns.gather(1, places), is_whole=False)
