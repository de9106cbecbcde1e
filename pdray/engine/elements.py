"""What compiled loops share: elements of fp32 or bf16 (as its bits, in int16), and fast maths.

numba has no bf16, and its exponential is not vectorized.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit
from numba.core import types
from numba.extending import overload

from pdray.engine.openmp import pointer

# Sums in any order; infinities and NaN stay what they are.
FAST = {"reassoc", "contract", "arcp", "nsz"}
_LOG2_E = np.float32(1.44269504)
_LINE_BYTES = 64
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)


def widen(element):
    """One stored element as a float32."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(element):
    if element == types.float32:
        return lambda element: element
    return lambda element: np.uint32(np.uint32(np.uint16(element)) << 16).view(np.float32)


def narrow(value, like):
    """A float32 as an element of the kind of ``like``, to nearest even."""
    raise NotImplementedError


@overload(narrow, inline="always")
def _narrow(value, like):
    if like == types.float32:
        return lambda value, like: value

    def to_bf16(value, like):
        bits = np.float32(value).view(np.uint32)
        rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        return np.int16(np.uint16(rounded >> np.uint32(16)))

    return to_bf16


@njit(inline="always")
def rows(address, size, like):
    """The elements at an address, as an array of the kind of ``like``."""
    return carray(pointer(address), size, like.dtype)


@njit
def aligned(size):
    """``size`` float32 that start at a cache line: a vector that lies across two takes twice as
    long to load."""
    memory = np.empty(size + _LINE_BYTES // 4, np.float32)
    start = -memory.ctypes.data % _LINE_BYTES // 4
    return memory[start : start + size]


@njit(fastmath=FAST, error_model="numpy", inline="always")
def fast_exp(x):
    """e^x of a float32, to 2 units in the last place; 0 below -87 and held at 88 above it."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    scale = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * scale


@njit(inline="always")
def as_float(bits):
    """A float that was passed as the bits of a float64."""
    return np.float32(np.int64(bits).view(np.float64))
