"""Rows that are held to a grammar: the logits of tokens that may not come become minus infinity."""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.engine.sequence import Sequence
from pdray.engine.upload import upload


def forbid_outside_grammars(logits_SV: torch.Tensor, rows: Row[tuple[int, Sequence]]) -> None:
    """In place, contiguous float32; rows without a grammar are left alone. A row
    whose grammar failed has no mask: it is the engine's to end."""
    masked: list[int] = []
    masks: list[NDArray[np.int32]] = []
    for row, seq in rows:
        state = seq.grammar_state
        if state is not None and state.error is None:
            assert state.mask is not None
            masked.append(row)
            masks.append(state.mask)
    if masked:
        forbid(logits_SV, masked, np.stack(masks))


def forbid(logits_SV: torch.Tensor, rows_R: Row[int], masks_RW: NDArray[np.int32]) -> None:
    """A bit for each token that may come: token 0 is the lowest of the first word. Tokens past
    the last word may not."""
    rows = upload(np.array(rows_R), logits_SV.device)
    if logits_SV.device.type == "cpu":
        from pdray.engine.sampling import compiled

        if compiled.is_available:
            compiled.forbid(logits_SV, rows, masks_RW)
            return
    words_RW = upload(masks_RW, logits_SV.device)
    may_come_RV = unpack_bits(words_RW, logits_SV.shape[1])
    logits_SV[rows] = logits_SV[rows].masked_fill_(~may_come_RV, -torch.inf)


def unpack_bits(words_RW: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """[R, V] of booleans, False past the last word."""
    places = torch.arange(32, dtype=torch.int32, device=words_RW.device)
    bits_RV = ((words_RW[:, :, None] >> places) & 1).flatten(1).bool()
    missing = max(0, vocab_size - bits_RV.shape[1])
    return torch.nn.functional.pad(bits_RV, (0, missing))[:, :vocab_size]
