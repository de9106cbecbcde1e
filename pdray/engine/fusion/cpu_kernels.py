"""The loops of a layer outside its matrix products and attention, compiled by numba.

A body's arguments begin with 1 for bf16 and 0 for fp32; addresses and counts follow, an address
of 0 standing for none. Results are rounded where transformers' modules round.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from pdray.engine.elements import FAST, as_float, fast_exp, narrow, rows, widen
from pdray.engine.openmp import arguments, share

_FP32 = np.empty(0, np.float32)
_BF16 = np.empty(0, np.int16)


@njit(fastmath=FAST, error_model="numpy")
def _scale_of(values, eps):
    total = np.float32(0)
    for i in range(values.shape[0]):
        total += values[i] * values[i]
    return np.float32(1) / np.sqrt(total / np.float32(values.shape[0]) + eps)


@njit(fastmath=FAST, error_model="numpy")
def _norm_row(values, weight, eps, like):
    """In place, in fp32, rounded as the elements are."""
    scale = _scale_of(values, eps)
    for i in range(values.shape[0]):
        values[i] = widen(narrow(values[i] * scale * weight[i], like))


@njit(fastmath=FAST, error_model="numpy")
def _load(values, row):
    for i in range(values.shape[0]):
        values[i] = widen(row[i])


@njit(fastmath=FAST, error_model="numpy")
def _add(values, row, like):
    for i in range(values.shape[0]):
        values[i] = widen(narrow(values[i] + widen(row[i]), like))


@njit(fastmath=FAST, error_model="numpy")
def _store(row, values, like):
    for i in range(values.shape[0]):
        row[i] = narrow(values[i], like)


@njit
def _add_norms(args, elements):
    num_tokens, size = args[1], args[2]
    branch, branch_weight, residual = args[3], args[4], args[5]
    total, weight, normed = args[6], args[7], args[8]
    like, fp32, nbytes = elements.dtype.type(0), _FP32, elements.itemsize
    values = np.empty(size, np.float32)
    start, end = share(num_tokens)
    for t in range(start, end):
        offset = t * size * nbytes
        _load(values, rows(branch + offset, size, elements))
        if branch_weight != 0:
            _norm_row(values, rows(branch_weight, size, fp32), as_float(args[9]), like)
        if residual != 0:
            _add(values, rows(residual + offset, size, elements), like)
        if total != 0:
            _store(rows(total + offset, size, elements), values, like)
        if weight != 0:
            _norm_row(values, rows(weight, size, fp32), as_float(args[10]), like)
            _store(rows(normed + offset, size, elements), values, like)


def add_norms(address):
    """[tokens, size, branch, its norm's weight, residual, sum out, norm's weight, normed out,
    branch eps, eps]; an eps is the bits of a float64."""
    args = arguments(address)
    if args[0]:
        _add_norms(args, _BF16)
    else:
        _add_norms(args, _FP32)


@njit(fastmath=FAST, error_model="numpy", inline="always")
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + fast_exp(-x))


@njit(fastmath=FAST, error_model="numpy")
def _silu(gate, up, out, like):
    for i in range(out.shape[0]):
        x = widen(gate[i])
        out[i] = narrow(widen(narrow(x * _sigmoid(x), like)) * widen(up[i]), like)


@njit(fastmath=FAST, error_model="numpy")
def _gelu_tanh(gate, up, out, like):
    # (1 + tanh(y)) / 2 is the sigmoid of 2y.
    slope, cubic = np.float32(2 * math.sqrt(2 / math.pi)), np.float32(0.044715)
    for i in range(out.shape[0]):
        x = widen(gate[i])
        y = x * _sigmoid(slope * (x + cubic * x * x * x))
        out[i] = narrow(widen(narrow(y, like)) * widen(up[i]), like)


@njit(fastmath=FAST, error_model="numpy")
def _gelu(gate, up, out, like):
    for i in range(out.shape[0]):
        x = widen(gate[i])
        y = np.float32(0.5) * x * (np.float32(1) + np.float32(math.erf(x * np.float32(0.70710678))))
        out[i] = narrow(widen(narrow(y, like)) * widen(up[i]), like)


@njit
def _gated_activation(args, elements):
    size, source, target, activation = args[2], args[3], args[4], args[5]
    like, nbytes = elements.dtype.type(0), elements.itemsize
    # By element, so that one token's work has two threads too.
    start, end = share(args[1] * size)
    while start < end:
        token, column = divmod(start, size)
        count = min(size - column, end - start)
        gate = rows(source + (2 * token * size + column) * nbytes, count, elements)
        up = rows(source + ((2 * token + 1) * size + column) * nbytes, count, elements)
        out = rows(target + start * nbytes, count, elements)
        if activation == 0:
            _silu(gate, up, out, like)
        elif activation == 1:
            _gelu_tanh(gate, up, out, like)
        else:
            _gelu(gate, up, out, like)
        start += count


def gated_activation(address):
    """[tokens, size, gate and up, out, activation]"""
    args = arguments(address)
    if args[0]:
        _gated_activation(args, _BF16)
    else:
        _gated_activation(args, _FP32)


@njit(fastmath=FAST, error_model="numpy")
def _rotate(values, cos, sin, like):
    half = cos.shape[0] // 2
    low, high = values[:half], values[half : 2 * half]
    cos_low, cos_high, sin_low, sin_high = cos[:half], cos[half:], sin[:half], sin[half:]
    for i in range(half):
        a, b = low[i], high[i]
        low[i] = widen(narrow(a * widen(cos_low[i]), like)) - widen(
            narrow(b * widen(sin_low[i]), like)
        )
        high[i] = widen(narrow(b * widen(cos_high[i]), like)) + widen(
            narrow(a * widen(sin_high[i]), like)
        )


@njit
def _norm_and_rotate(args, elements):
    qkv, row_stride, num_heads, num_kv_heads = args[2], args[3], args[4], args[5]
    head_dim, rotary_dim, cos, sin = args[6], args[7], args[8], args[9]
    like, fp32, nbytes = elements.dtype.type(0), _FP32, elements.itemsize
    values = np.empty(head_dim, np.float32)
    heads = num_heads + num_kv_heads
    start, end = share(args[1] * heads)
    for item in range(start, end):
        token, head = divmod(item, heads)
        row = rows(qkv + (token * row_stride + head * head_dim) * nbytes, head_dim, elements)
        _load(values, row)
        weight, eps = (args[10], args[12]) if head < num_heads else (args[11], args[13])
        if weight != 0:
            _norm_row(values, rows(weight, head_dim, fp32), as_float(eps), like)
        angles = token * rotary_dim * nbytes
        _rotate(
            values,
            rows(cos + angles, rotary_dim, elements),
            rows(sin + angles, rotary_dim, elements),
            like,
        )
        _store(row, values, like)


def norm_and_rotate(address):
    """[tokens, qkv, elements in a row, heads, KV heads, head dim, rotary dim, cos, sin, query
    weight, key weight, query eps, key eps]"""
    args = arguments(address)
    if args[0]:
        _norm_and_rotate(args, _BF16)
    else:
        _norm_and_rotate(args, _FP32)
