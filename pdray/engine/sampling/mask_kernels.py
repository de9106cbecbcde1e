"""The loop that forbids tokens, compiled by numba: one pass over the masks' words."""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import rows
from pdray.engine.openmp import arguments, share

_FP32 = np.empty(0, np.float32)
_INT32 = np.empty(0, np.int32)
_INT64 = np.empty(0, np.int64)
_ALL = np.int32(-1)
_NONE = np.int32(0)
_WORD = 32
_FEW = 4


@njit
def _num_bits(word):
    word -= (word >> np.uint32(1)) & np.uint32(0x55555555)
    word = (word & np.uint32(0x33333333)) + ((word >> np.uint32(2)) & np.uint32(0x33333333))
    word = (word + (word >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.uint32(word * np.uint32(0x01010101)) >> np.uint32(24)


@njit
def _forbid_few(logits, missing):
    """One by one: the others are not even read."""
    while missing != 0:
        lowest = missing & (~missing + np.uint32(1))
        # The exponent of a power of two.
        logits[(np.float32(lowest).view(np.int32) >> 23) - 127] = -np.inf
        missing ^= lowest


@njit
def _forbid_word(logits, word):
    """Without a branch, so that a whole word of tokens is a few instructions."""
    for bit in range(_WORD):
        may_come = (word >> np.int32(bit)) & np.int32(1)
        logits[bit] = logits[bit] if may_come else np.float32(-np.inf)


@njit
def _forbid_rest(logits, word):
    for bit in range(logits.shape[0]):
        if not (word >> np.int32(bit)) & np.int32(1):
            logits[bit] = -np.inf


@njit
def _forbid_row(logits_V, mask_W, first_word, end_word):
    for place in range(first_word, end_word):
        word = mask_W[place] if place < mask_W.shape[0] else _NONE
        if word == _ALL:
            continue
        start = place * _WORD
        if start + _WORD > logits_V.shape[0]:
            _forbid_rest(logits_V[start:], word)
        elif _num_bits(np.uint32(~word)) <= _FEW:
            _forbid_few(logits_V[start : start + _WORD], np.uint32(~word))
        else:
            _forbid_word(logits_V[start : start + _WORD], word)


def forbid(address):
    """[R, V, logits_SV, rows_R, words of a mask, masks_RW]. Most words are all ones, which costs
    nothing, nearly so, or none."""
    args = arguments(address)
    num_rows, vocab_size, mask_size = args[0], args[1], args[4]
    rows_R = rows(args[3], num_rows, _INT64)
    num_words = (vocab_size + _WORD - 1) // _WORD
    start, end = share(num_words)
    for r in range(num_rows):
        logits_V = rows(args[2] + 4 * rows_R[r] * vocab_size, vocab_size, _FP32)
        mask_W = rows(args[5] + 4 * r * mask_size, mask_size, _INT32)
        _forbid_row(logits_V, mask_W, start, end)
