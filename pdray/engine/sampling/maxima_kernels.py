"""The largest logit of each block of a row of bf16, compiled by numba; torch's own reduction takes
eight times as long.

A bf16 with its sign bit set is in the wrong order as an integer, and in the right one when its
other bits are turned round. So they are compared as integers, many at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import rows
from pdray.engine.openmp import arguments, share
from pdray.engine.sampling.blocks import BLOCK

_BF16 = np.empty(0, np.int16)
_MAGNITUDE = np.int16(0x7FFF)
_INFINITY = np.int16(0x7F80)


@njit
def _turned(bits):
    return np.int16(bits ^ (np.int16(bits >> 15) & _MAGNITUDE))


@njit
def _ordered(bits):
    """An integer in the order of the floats, NaN above all. Turned again, it is the bits."""
    return _MAGNITUDE if np.int16(bits & _MAGNITUDE) > _INFINITY else _turned(bits)


@njit
def _largest(block):
    best = _ordered(block[0])
    for i in range(block.shape[0]):
        best = max(best, _ordered(block[i]))
    return _turned(best)


def find_maxima(address):
    """[rows, vocabulary, logits, maxima out]"""
    args = arguments(address)
    num_rows, vocab_size = args[0], args[1]
    num_blocks = (vocab_size + BLOCK - 1) // BLOCK
    maxima = rows(args[3], num_rows * num_blocks, _BF16)
    begin, end = share(num_rows * num_blocks)
    for item in range(begin, end):
        row, block = divmod(item, num_blocks)
        start = block * BLOCK
        logits = args[2] + (row * vocab_size + start) * _BF16.itemsize
        if start + BLOCK <= vocab_size:
            maxima[item] = _largest(rows(logits, BLOCK, _BF16))
        else:
            maxima[item] = _largest(rows(logits, vocab_size - start, _BF16))
