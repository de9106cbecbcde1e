"""The loop that forbids tokens, compiled by numba: one pass over the masks' words."""

from __future__ import annotations

import numpy as np
from numba import njit

_ALL = np.int32(-1)
_NONE = np.int32(0)


@njit(nogil=True)
def forbid(logits_SV, rows_R, masks_RW):
    """Most words are all ones, which costs nothing, or none."""
    vocab_size = logits_SV.shape[1]
    for index in range(len(rows_R)):
        logits_V = logits_SV[rows_R[index]]
        mask_W = masks_RW[index]
        num_covered = min(vocab_size, 32 * len(mask_W))
        for word in range((num_covered + 31) // 32):
            start = 32 * word
            end = min(start + 32, num_covered)
            if mask_W[word] == _NONE:
                logits_V[start:end] = -np.inf
            elif mask_W[word] != _ALL:
                for token in range(start, end):
                    if not (mask_W[word] >> (token - start)) & 1:
                        logits_V[token] = -np.inf
        logits_V[num_covered:] = -np.inf
