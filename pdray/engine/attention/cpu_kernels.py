"""Loops over KV blocks in place, compiled by numba: no gathered copies, no padding.

Arrays are flat, offsets and strides are in elements. fp32 as it is; bf16 as its bits, in int16.
Rows are slices: an index that numba must check for a sign would keep it from vectorizing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange
from numba.core import types
from numba.extending import overload

# Sums in any order; infinities and NaN stay what they are.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


def widen(element):
    """One stored element as a float32."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(element):
    if element == types.float32:
        return lambda element: element
    return lambda element: np.uint32(np.uint32(np.uint16(element)) << 16).view(np.float32)


@njit(fastmath=_FAST)
def _dot(query, key):
    total = np.float32(0)
    for h in range(query.shape[0]):
        total += query[h] * widen(key[h])
    return total


@njit(fastmath=_FAST)
def _add(out, weight, value):
    for h in range(out.shape[0]):
        out[h] += weight * widen(value[h])


@njit(fastmath=_FAST)
def _add_four(out, weights, values, size):
    a, b = values[:size], values[size : 2 * size]
    c, d = values[2 * size : 3 * size], values[3 * size : 4 * size]
    for h in range(size):
        out[h] += (
            weights[0] * widen(a[h])
            + weights[1] * widen(b[h])
            + weights[2] * widen(c[h])
            + weights[3] * widen(d[h])
        )


@njit(fastmath=_FAST)
def _softmax(scores, softcap, sink):
    """In place. A softcap of 0 is none, and so is a sink of -inf."""
    if softcap > 0:
        for c in range(scores.shape[0]):
            scores[c] = math.tanh(scores[c] / softcap) * softcap
    top = sink
    for c in range(scores.shape[0]):
        top = max(top, scores[c])
    total = math.exp(sink - top)
    for c in range(scores.shape[0]):
        scores[c] = math.exp(scores[c] - top)
        total += scores[c]
    for c in range(scores.shape[0]):
        scores[c] /= total


@njit(fastmath=_FAST)
def _attend_one(arena, queries, table, context, shape, offsets, softcap, sinks, out):
    """All query heads of one KV head. ``queries`` [G * H] are scaled; ``out`` [G * value H].
    ``context`` are positions: of the table's first block, the first and one past the last key."""
    first_position, start, end = context
    block_size, k_dim, v_dim = shape
    k_offset, v_offset, block_stride = offsets
    num_heads = queries.shape[0] // k_dim
    num_keys = end - start
    scores = np.empty((num_heads, num_keys), np.float32)
    done = 0
    while done < num_keys:
        block, offset = divmod(start + done - first_position, block_size)
        count = min(block_size - offset, num_keys - done)
        base = k_offset + table[block] * block_stride + offset * k_dim
        for i in range(count):
            key = arena[base + i * k_dim : base + (i + 1) * k_dim]
            for g in range(num_heads):
                scores[g, done + i] = _dot(queries[g * k_dim : (g + 1) * k_dim], key)
        done += count
    for g in range(num_heads):
        _softmax(scores[g], softcap, sinks[g])
    out[:] = 0
    done = 0
    while done < num_keys:
        block, offset = divmod(start + done - first_position, block_size)
        count = min(block_size - offset, num_keys - done)
        base = v_offset + table[block] * block_stride + offset * v_dim
        for g in range(num_heads):
            head = out[g * v_dim : (g + 1) * v_dim]
            fours = count // 4 * 4
            for i in range(0, fours, 4):
                values = arena[base + i * v_dim : base + (i + 4) * v_dim]
                _add_four(head, scores[g, done + i : done + i + 4], values, v_dim)
            for i in range(fours, count):
                value = arena[base + i * v_dim : base + (i + 1) * v_dim]
                _add(head, scores[g, done + i], value)
        done += count


def _attend_decodes(
    arena, queries, query_strides, tables, contexts, shape, offsets, scaling, softcap, sinks, out
):
    """Row s of ``tables``, ``contexts`` and ``out`` [S, N * value H] is token s of ``queries``."""
    k_dim, v_dim = shape[1], shape[2]
    k_offset, v_offset, block_stride, head_stride, num_kv_heads = offsets
    token_stride, query_head_stride = query_strides
    group = sinks.shape[0] // num_kv_heads
    for item in prange(tables.shape[0] * num_kv_heads):
        seq, kv_head = divmod(item, num_kv_heads)
        scaled = np.empty(group * k_dim, np.float32)
        for g in range(group):
            begin = seq * token_stride + (kv_head * group + g) * query_head_stride
            head = queries[begin : begin + k_dim]
            for h in range(k_dim):
                scaled[g * k_dim + h] = head[h] * scaling
        skipped = kv_head * head_stride
        _attend_one(
            arena,
            scaled,
            tables[seq],
            (contexts[seq, 0], contexts[seq, 1], contexts[seq, 2]),
            shape,
            (k_offset + skipped, v_offset + skipped, block_stride),
            softcap,
            sinks[kv_head * group : (kv_head + 1) * group],
            out[seq, kv_head * group * v_dim : (kv_head + 1) * group * v_dim],
        )


def _signature(element):
    int64, float32 = types.int64, types.float32
    return types.void(
        types.Array(element, 1, "C"),
        float32[::1],
        types.UniTuple(int64, 2),
        int64[:, ::1],
        int64[:, ::1],
        types.UniTuple(int64, 3),
        types.UniTuple(int64, 5),
        float32,
        float32,
        float32[::1],
        float32[:, ::1],
    )


_SIGNATURES = [_signature(types.float32), _signature(types.int16)]
# Compiled when this module is imported, and kept on disk: no request waits for it.
attend_decodes_alone = njit(_SIGNATURES, fastmath=_FAST, cache=True)(_attend_decodes)
attend_decodes_in_parallel = njit(_SIGNATURES, fastmath=_FAST, cache=True, parallel=True)(
    _attend_decodes
)


@njit(cache=True)
def write_rows(arena, blocks, offsets, block_stride, head_stride, begin, rows, strides, shape):
    """Copies ``rows`` [heads, T, H] to their slots; ``begin`` is head 0's of block 0."""
    num_heads, row_dim = shape
    source_head_stride, source_token_stride = strides
    for t in range(blocks.shape[0]):
        for head in range(num_heads):
            to = begin + blocks[t] * block_stride + head * head_stride + offsets[t] * row_dim
            source = head * source_head_stride + t * source_token_stride
            arena[to : to + row_dim] = rows[source : source + row_dim]
