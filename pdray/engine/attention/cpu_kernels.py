"""Attention over KV blocks in place: no gathered copies, no padding. Compiled by numba.

A body's arguments begin with 1 for bf16 and 0 for fp32. Addresses are of first elements, strides
in elements. Key and value rows of a block are contiguous.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.attention.cpu_products import score_block, weigh_block
from pdray.engine.elements import FAST, aligned, as_float, fast_exp, narrow, rows, widen
from pdray.engine.openmp import arguments, share

_FP32 = np.empty(0, np.float32)
_BF16 = np.empty(0, np.int16)
_INT64 = np.empty(0, np.int64)


@njit(fastmath={*FAST, "nnan"}, error_model="numpy")
def _top(scores, sink):
    """Of numbers. With one that is none, whatever: the sum will be none then."""
    top = sink
    for c in range(scores.shape[0]):
        top = max(top, scores[c])
    return top


@njit(fastmath=FAST, error_model="numpy")
def softmax(scores, softcap, sink):
    """In place. A softcap of 0 is none, and so is a sink of -inf."""
    one, two = np.float32(1), np.float32(2)
    if softcap > 0:
        for c in range(scores.shape[0]):
            # tanh(x) is 1 - 2 / (1 + e^2x).
            scores[c] = softcap * (one - two / (one + fast_exp(two * scores[c] / softcap)))
    top = _top(scores, sink)
    total = np.float32(0)
    for c in range(scores.shape[0]):
        scores[c] = fast_exp(scores[c] - top)
        total += scores[c]
    if sink > -np.inf:
        total += fast_exp(sink - top)
    share_of_one = one / total
    for c in range(scores.shape[0]):
        scores[c] *= share_of_one


@njit(fastmath=FAST, error_model="numpy")
def _scaled(queries, query, scaling):
    for h in range(queries.shape[0]):
        queries[h] = widen(query[h]) * scaling


@njit(fastmath=FAST, error_model="numpy")
def _rounded(row, values, like):
    for h in range(row.shape[0]):
        row[h] = narrow(values[h], like)


@njit
def _row(cache, table, slot, block_size, block_stride, row_bytes):
    """Address of a slot's key or value. ``cache`` is of a head's first one in block 0."""
    block, offset = divmod(slot, block_size)
    return cache + table[block] * block_stride + offset * row_bytes


@njit(error_model="numpy")
def _attend_heads(queries, table, slots, keys, values, block_size, block_stride, masks, like):
    """Sums [heads, v_dim] of one sequence and KV head, whose ``keys`` and ``values`` are caches as
    an address and a size each; ``masks`` are a softcap, and sinks by head."""
    (key_cache, k_dim), (value_cache, v_dim), (softcap, sinks) = keys, values, masks
    num_heads, (first, last) = queries.shape[0], slots
    key_bytes, value_bytes = k_dim * like.itemsize, v_dim * like.itemsize
    scores = np.empty((num_heads, last - first), np.float32)
    sums = aligned(num_heads * v_dim).reshape(num_heads, v_dim)
    sums[:] = 0
    first_value = _row(value_cache, table, first, block_size, block_stride, value_bytes)
    key, slot = _row(key_cache, table, first, block_size, block_stride, key_bytes), first
    while slot < last:
        end = min(last, (slot // block_size + 1) * block_size)
        after = first_value
        if end < last:
            after = _row(key_cache, table, end, block_size, block_stride, key_bytes)
        score_block(scores[:, slot - first : end - first], queries, key, k_dim, like, after)
        key, slot = after, end
    for g in range(num_heads):
        softmax(scores[g], softcap, sinks[g])
    value, slot = first_value, first
    while slot < last:
        end = min(last, (slot // block_size + 1) * block_size)
        after = value
        if end < last:
            after = _row(value_cache, table, end, block_size, block_stride, value_bytes)
        weigh_block(sums, scores[:, slot - first : end - first], value, v_dim, like, after)
        value, slot = after, end
    return sums


@njit(error_model="numpy")
def _attend_decodes(args, elements):
    num_seqs, width, token_stride, head_stride = args[1], args[3], args[6], args[7]
    num_kv_heads, group, block_size = args[8], args[9], args[10]
    k_dim, v_dim, block_stride, kv_head_stride = args[11], args[12], args[15], args[16]
    heads_per_item = args[21]
    num_bytes, like = elements.itemsize, elements.dtype.type(0)
    no_sinks = np.full(group, -np.inf, np.float32)
    chunks = (group + heads_per_item - 1) // heads_per_item
    begin, end = share(num_seqs * num_kv_heads * chunks)
    for item in range(begin, end):
        seq, rest = divmod(item, num_kv_heads * chunks)
        kv_head, chunk = divmod(rest, chunks)
        head = kv_head * group + chunk * heads_per_item
        num_heads = min(heads_per_item, group - chunk * heads_per_item)
        queries = aligned(num_heads * k_dim).reshape(num_heads, k_dim)
        for g in range(num_heads):
            offset = seq * token_stride + (head + g) * head_stride
            query = rows(args[5] + offset * num_bytes, k_dim, elements)
            _scaled(queries[g], query, as_float(args[17]))
        context = rows(args[4] + seq * 24, 3, _INT64)
        sinks = no_sinks if args[19] == 0 else rows(args[19] + head * 4, num_heads, _FP32)
        kv_offset = kv_head * kv_head_stride * num_bytes
        sums = _attend_heads(
            queries,
            rows(args[2] + seq * width * 8, width, _INT64),
            (context[1] - context[0], context[2] - context[0]),
            (args[13] + kv_offset, k_dim),
            (args[14] + kv_offset, v_dim),
            block_size,
            block_stride * num_bytes,
            (as_float(args[18]), sinks),
            elements,
        )
        offset = (seq * num_kv_heads * group + head) * v_dim
        _rounded(
            rows(args[20] + offset * num_bytes, num_heads * v_dim, elements), sums.ravel(), like
        )


def attend_decodes(address):
    """[sequences, block tables, blocks in a row of them, contexts, queries, their token stride
    and head stride, KV heads, query heads of each, block size, key dim, value dim, keys, values,
    block stride, KV head stride, scaling, softcap, sinks, out, query heads a thread takes at a
    time]. A context is three positions: of the table's first slot, of the first visible key, past
    the last; a softcap of 0 and sinks at 0 are none."""
    args = arguments(address)
    if args[0]:
        _attend_decodes(args, _BF16)
    else:
        _attend_decodes(args, _FP32)


@njit(error_model="numpy")
def _write_rows(args, elements):
    num_bytes = elements.itemsize
    blocks, offsets = rows(args[2], args[1], _INT64), rows(args[3], args[1], _INT64)
    begin, end = share(args[1])
    for t in range(begin, end):
        slot = blocks[t] * args[4] * num_bytes
        for head in range(args[6]):
            place = slot + head * args[5] * num_bytes
            for cache, source, token_stride, head_stride, size in (
                (args[7], args[8], args[9], args[10], args[11]),
                (args[12], args[13], args[14], args[15], args[16]),
            ):
                row = source + (t * token_stride + head * head_stride) * num_bytes
                to = cache + place + offsets[t] * size * num_bytes
                rows(to, size, elements)[:] = rows(row, size, elements)


def write_rows(address):
    """[tokens, slot blocks, slot offsets, block stride, KV head stride, KV heads, then for keys
    and for values: cache, rows, their token stride and head stride, size of one]"""
    args = arguments(address)
    if args[0]:
        _write_rows(args, _BF16)
    else:
        _write_rows(args, _FP32)


@njit(error_model="numpy")
def _clear(values):
    for c in range(values.shape[0]):
        values[c] = 0


@njit(fastmath=FAST, error_model="numpy")
def _scale(values, scaling):
    for c in range(values.shape[0]):
        values[c] *= scaling


def mask_and_softmax(address):
    """[rows, queries, keys, scores, place of the first query's own key, window, scaling, softcap,
    sinks]: rows are heads by queries, fp32. Weights of keys that a query does not see are 0."""
    args = arguments(address)
    num_queries, num_keys = args[1], args[2]
    scaling, softcap, sink = as_float(args[6]), as_float(args[7]), np.float32(-np.inf)
    begin, end = share(args[0])
    for row in range(begin, end):
        head, query = divmod(row, num_queries)
        last = args[4] + query + 1
        first = 0 if args[5] == 0 else max(0, last - args[5])
        scores = rows(args[3] + row * num_keys * 4, num_keys, _FP32)
        if args[8] != 0:
            sink = rows(args[8], head + 1, _FP32)[head]
        _clear(scores[:first])
        _scale(scores[first:last], scaling)
        softmax(scores[first:last], softcap, sink)
        _clear(scores[last:])
