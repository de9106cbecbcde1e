"""Attention over KV blocks in place: no gathered copies, no padding. Compiled by numba.

A body's arguments begin with 1 for bf16 and 0 for fp32. Addresses are of first elements, strides
in elements. Key and value rows of a block are contiguous.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pdray.engine.elements import FAST, as_float, fast_exp, narrow, rows, widen
from pdray.engine.openmp import arguments, share

_FP32 = np.empty(0, np.float32)
_BF16 = np.empty(0, np.int16)
_INT64 = np.empty(0, np.int64)


@njit(fastmath=FAST, error_model="numpy")
def _dot(query, key):
    total = np.float32(0)
    for h in range(key.shape[0]):
        total += query[h] * widen(key[h])
    return total


@njit(fastmath=FAST, error_model="numpy")
def _dots_of_four(queries, key):
    """Of four query heads side by side: a key is loaded once for all of them."""
    size = key.shape[0]
    q, r, s, t = queries[:size], queries[size:], queries[2 * size :], queries[3 * size :]
    a = b = c = d = np.float32(0)
    for h in range(size):
        k = widen(key[h])
        a += q[h] * k
        b += r[h] * k
        c += s[h] * k
        d += t[h] * k
    return a, b, c, d


@njit(fastmath=FAST, error_model="numpy")
def _add(out, weight, value):
    for h in range(out.shape[0]):
        out[h] += weight * widen(value[h])


@njit(fastmath=FAST, error_model="numpy")
def _add_eight(out, weights, values):
    size = out.shape[0]
    a, b, c, d = values, values[size:], values[2 * size :], values[3 * size :]
    e, f, g, i = values[4 * size :], values[5 * size :], values[6 * size :], values[7 * size :]
    s, t, u, v = weights[0], weights[1], weights[2], weights[3]
    w, x, y, z = weights[4], weights[5], weights[6], weights[7]
    for h in range(size):
        low = s * widen(a[h]) + t * widen(b[h]) + u * widen(c[h]) + v * widen(d[h])
        high = w * widen(e[h]) + x * widen(f[h]) + y * widen(g[h]) + z * widen(i[h])
        out[h] += low + high


@njit(fastmath=FAST, error_model="numpy")
def softmax(scores, softcap, sink):
    """In place. A softcap of 0 is none, and so is a sink of -inf."""
    one, two = np.float32(1), np.float32(2)
    if softcap > 0:
        for c in range(scores.shape[0]):
            # tanh(x) is 1 - 2 / (1 + e^2x).
            scores[c] = softcap * (one - two / (one + fast_exp(two * scores[c] / softcap)))
    top = sink
    for c in range(scores.shape[0]):
        top = max(top, scores[c])
    total = np.float32(0)
    for c in range(scores.shape[0]):
        scores[c] = fast_exp(scores[c] - top)
        total += scores[c]
    if sink > -np.inf:
        total += fast_exp(sink - top)
    share_of_one = one / total
    for c in range(scores.shape[0]):
        scores[c] *= share_of_one


@njit(error_model="numpy")
def _score_block(scores, queries, keys, done, count, k_dim):
    """Fills columns [done, done + count) of ``scores`` [heads, keys]."""
    num_heads = scores.shape[0]
    fours = num_heads // 4 * 4
    for i in range(count):
        key = keys[i * k_dim : (i + 1) * k_dim]
        for g in range(0, fours, 4):
            a, b, c, d = _dots_of_four(queries[g * k_dim :], key)
            scores[g, done + i] = a
            scores[g + 1, done + i] = b
            scores[g + 2, done + i] = c
            scores[g + 3, done + i] = d
        for g in range(fours, num_heads):
            scores[g, done + i] = _dot(queries[g * k_dim :], key)


@njit(error_model="numpy")
def _weigh_block(out, scores, values, done, count, v_dim):
    eights = count // 8 * 8
    for g in range(scores.shape[0]):
        head = out[g * v_dim : (g + 1) * v_dim]
        weights = scores[g, done : done + count]
        for i in range(0, eights, 8):
            _add_eight(head, weights[i:], values[i * v_dim :])
        for i in range(eights, count):
            _add(head, weights[i], values[i * v_dim : (i + 1) * v_dim])


@njit(fastmath=FAST, error_model="numpy")
def _scaled(queries, query, scaling):
    for h in range(queries.shape[0]):
        queries[h] = widen(query[h]) * scaling


@njit(fastmath=FAST, error_model="numpy")
def _rounded(row, values, like):
    for h in range(row.shape[0]):
        row[h] = narrow(values[h], like)


@njit(error_model="numpy")
def _attend_decodes(args, elements):
    num_seqs, width, token_stride, head_stride = args[1], args[3], args[6], args[7]
    num_kv_heads, group, block_size = args[8], args[9], args[10]
    k_dim, v_dim, block_stride, kv_head_stride = args[11], args[12], args[15], args[16]
    heads_per_item = args[21]
    num_bytes, like = elements.itemsize, elements.dtype.type(0)
    chunks = (group + heads_per_item - 1) // heads_per_item
    begin, end = share(num_seqs * num_kv_heads * chunks)
    for item in range(begin, end):
        seq, rest = divmod(item, num_kv_heads * chunks)
        kv_head, chunk = divmod(rest, chunks)
        head = kv_head * group + chunk * heads_per_item
        num_heads = min(heads_per_item, group - chunk * heads_per_item)
        table = rows(args[2] + seq * width * 8, width, _INT64)
        context = rows(args[4] + seq * 24, 3, _INT64)
        first_position, start, num_keys = context[0], context[1], context[2] - context[1]
        queries = np.empty(num_heads * k_dim, np.float32)
        for g in range(num_heads):
            offset = seq * token_stride + (head + g) * head_stride
            query = rows(args[5] + offset * num_bytes, k_dim, elements)
            _scaled(queries[g * k_dim : (g + 1) * k_dim], query, as_float(args[17]))
        scores = np.empty((num_heads, num_keys), np.float32)
        done = 0
        while done < num_keys:
            block, offset = divmod(start + done - first_position, block_size)
            count = min(block_size - offset, num_keys - done)
            row = table[block] * block_stride + kv_head * kv_head_stride + offset * k_dim
            keys = rows(args[13] + row * num_bytes, count * k_dim, elements)
            _score_block(scores, queries, keys, done, count, k_dim)
            done += count
        for g in range(num_heads):
            sink = np.float32(-np.inf)
            if args[19] != 0:
                sink = rows(args[19], num_kv_heads * group, _FP32)[head + g]
            softmax(scores[g], as_float(args[18]), sink)
        sums = np.zeros(num_heads * v_dim, np.float32)
        done = 0
        while done < num_keys:
            block, offset = divmod(start + done - first_position, block_size)
            count = min(block_size - offset, num_keys - done)
            row = table[block] * block_stride + kv_head * kv_head_stride + offset * v_dim
            values = rows(args[14] + row * num_bytes, count * v_dim, elements)
            _weigh_block(sums, scores, values, done, count, v_dim)
            done += count
        offset = (seq * num_kv_heads * group + head) * v_dim
        _rounded(rows(args[20] + offset * num_bytes, num_heads * v_dim, elements), sums, like)


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
