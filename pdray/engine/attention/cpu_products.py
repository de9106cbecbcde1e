"""The two products of attention with the keys or values of one block, where the cache has them.

Query heads that share a KV head are multiplied four at a time, so that a key or value is loaded
once for the four; what does not divide so goes one at a time. Queries, scores and sums are fp32.
Keys and values are addresses, of the kind of ``like``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import FAST, rows, widen
from pdray.engine.vectors import LANES, inner_product, outer_product

_HEADS = 4
_KEYS = LANES // _HEADS
_STRIP = 4 * LANES

_scores_of_four_heads = inner_product(_HEADS, _KEYS)
_score = inner_product(1, 1)
_weigh_for_four_heads = outer_product(_HEADS, _STRIP // LANES)
_weigh = outer_product(1, 1)


@njit(fastmath=FAST, error_model="numpy")
def _tail_score(query, key):
    total = np.float32(0)
    for h in range(query.shape[0]):
        total += query[h] * widen(key[h])
    return total


@njit
def score_block(scores, queries, keys, k_dim, like, after):
    """Fills ``scores`` [heads, keys] of ``queries`` [heads, k_dim]. Fetches as many keys ``after``
    them, which will be read next."""
    num_heads, num_keys = scores.shape
    score_bytes, query_bytes, key_bytes = scores.strides[0], k_dim * 4, k_dim * like.itemsize
    size = k_dim // LANES * LANES
    for i in range(0, num_keys, _KEYS):
        g, count = 0, min(_KEYS, num_keys - i)
        key = keys + i * key_bytes
        out = scores.ctypes.data + i * 4
        while count == _KEYS and size > 0 and g + _HEADS <= num_heads:
            query = queries.ctypes.data + g * query_bytes
            row = out + g * score_bytes
            ahead = after + i * key_bytes
            _scores_of_four_heads(
                like, query, query_bytes, key, key_bytes, size, row, score_bytes, ahead
            )
            g += _HEADS
        while size > 0 and g < num_heads:
            query = queries.ctypes.data + g * query_bytes
            for j in range(count):
                place = out + g * score_bytes + j * 4
                offset = j * key_bytes
                ahead = after + i * key_bytes + offset
                _score(like, query, 0, key + offset, 0, size, place, 0, ahead)
            g += 1
    if size == 0:
        scores[:] = 0
    if size < k_dim:
        for g in range(num_heads):
            for i in range(num_keys):
                key = rows(keys + i * key_bytes + size * like.itemsize, k_dim - size, like)
                scores[g, i] += _tail_score(queries[g, size:], key)


@njit
def weigh_block(sums, scores, values, v_dim, like, after):
    """Adds to ``sums`` [heads, v_dim] the values weighed by ``scores`` [heads, values]. Fetches
    as many values ``after`` them, which will be read next."""
    num_heads, num_values = scores.shape
    score_bytes, sum_bytes, value_bytes = scores.strides[0], v_dim * 4, v_dim * like.itemsize
    size = v_dim // LANES * LANES
    num_strips = (size + _STRIP - 1) // _STRIP
    for strip in range(num_strips):
        start, end = strip * _STRIP, min((strip + 1) * _STRIP, size)
        g = 0
        while end - start == _STRIP and g + _HEADS <= num_heads:
            weights = scores.ctypes.data + g * score_bytes
            place = sums.ctypes.data + g * sum_bytes + start * 4
            strip_at = values + start * like.itemsize
            ahead = after + start * num_values * like.itemsize
            _weigh_for_four_heads(
                like,
                weights,
                score_bytes,
                strip_at,
                value_bytes,
                num_values,
                place,
                sum_bytes,
                ahead,
            )
            g += _HEADS
        while g < num_heads:
            weights = scores.ctypes.data + g * score_bytes
            for column in range(start, end, LANES):
                place = sums.ctypes.data + g * sum_bytes + column * 4
                column_at = values + column * like.itemsize
                ahead = after + column * num_values * like.itemsize
                _weigh(like, weights, 0, column_at, value_bytes, num_values, place, 0, ahead)
            g += 1
    for g in range(num_heads if size < v_dim else 0):
        for i in range(num_values):
            value = rows(values + i * value_bytes, v_dim, like)
            for h in range(size, v_dim):
                sums[g, h] += scores[g, i] * widen(value[h])
