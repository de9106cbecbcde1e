"""Triton kernels over KV blocks in place: write a step's rows, attend prompts, attend decodes.

Terms and suffixes as in triton_tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pdray.engine.attention.triton_tiles import LOG2E, attend_tiles, mean, start_state

ROW_HEADER = tl.constexpr(3)
"""Numbers before the table in a row (metadata.HEADER). Of a decode: slot of the first key that it
sees, one past the last, and the sum of their differences over the batch. Of a prompt: its first
token, its number of tokens, the slot of the first."""


@triton.jit(do_not_specialize=["slot_stride"])
def write_rows(
    k_cache,
    v_cache,
    key,
    value,
    slots,
    slot_stride,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    block_stride,
    head_stride,
    HEADS: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
):
    """A program per token; ``slots`` has its block and the offset in it."""
    token = tl.program_id(0).to(tl.int64)
    block = tl.load(slots + token * slot_stride).to(tl.int64)
    offset = tl.load(slots + token * slot_stride + 1)
    heads = tl.arange(0, HEADS_PAD)[:, None]
    k_dims, v_dims = tl.arange(0, K_PAD)[None, :], tl.arange(0, V_PAD)[None, :]
    is_key = (heads < HEADS) & (k_dims < K_DIM)
    is_value = (heads < HEADS) & (v_dims < V_DIM)
    in_block = block * block_stride + heads * head_stride
    source = key + token * key_token_stride + heads * key_head_stride + k_dims
    tl.store(k_cache + in_block + offset * K_DIM + k_dims, tl.load(source, is_key), is_key)
    source = value + token * value_token_stride + heads * value_head_stride + v_dims
    tl.store(v_cache + in_block + offset * V_DIM + v_dims, tl.load(source, is_value), is_value)


@triton.jit(do_not_specialize=["row_stride"])
def attend_prompts(
    out,
    query,
    k_cache,
    v_cache,
    sinks,
    rows,
    tiles,
    row_stride,
    query_head_stride,
    query_token_stride,
    block_stride,
    head_stride,
    scaling,
    softcap,
    window,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program per KV head and tile of ``M // GROUP`` queries: ``tiles`` has its row and its
    first query. ``out`` [T, N, V_DIM]."""
    kv_head = tl.program_id(0)
    row = rows + tl.load(tiles + 2 * tl.program_id(1)).to(tl.int64) * row_stride
    first = tl.load(tiles + 2 * tl.program_id(1) + 1)
    token, num_queries, slot = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    last = tl.minimum(first + M // GROUP, num_queries) - 1

    m = tl.arange(0, M)
    index_M = first + m // GROUP
    head_M = kv_head * GROUP + m % GROUP
    is_row_M = (m // GROUP < M // GROUP) & (index_M < num_queries)
    token_M = (token + index_M).to(tl.int64)
    dims = tl.arange(0, K_PAD)[None, :]
    query_MH = tl.load(
        query + (token_M * query_token_stride + head_M * query_head_stride)[:, None] + dims,
        mask=is_row_M[:, None] & (dims < K_DIM),
        other=0.0,
    )

    # Keys [begin, all_begin) and [all_end, end) are seen by some rows, those between by all.
    end = slot + last + 1
    all_end = (slot + first + 1) // TILE * TILE
    if window is None:
        begin = 0
        all_begin = 0
        first_M = None
    else:
        begin = tl.maximum(slot + first + 1 - window, 0) // TILE * TILE
        all_begin = tl.cdiv(tl.maximum(slot + last + 1 - window, 0), TILE) * TILE
        all_begin = tl.minimum(all_begin, tl.cdiv(end, TILE) * TILE)
        all_end = tl.maximum(all_begin, all_end)
        first_M = slot + index_M + 1 - window
    stop_M = slot + index_M + 1
    table = row + ROW_HEADER
    k_cache += kv_head.to(tl.int64) * head_stride
    v_cache += kv_head.to(tl.int64) * head_stride
    state = start_state(sinks, head_M, is_row_M, M, V_PAD)
    if window is not None:
        state = attend_tiles(
            state, query_MH, k_cache, v_cache, table, begin, all_begin, first_M, stop_M, end,
            block_stride, scaling, softcap, BLOCK_SIZE, K_DIM, V_DIM, K_PAD, V_PAD, TILE, True,
        )  # fmt: skip
    state = attend_tiles(
        state, query_MH, k_cache, v_cache, table, all_begin, all_end, first_M, stop_M, end,
        block_stride, scaling, softcap, BLOCK_SIZE, K_DIM, V_DIM, K_PAD, V_PAD, TILE, False,
    )  # fmt: skip
    out_MV, _, total_M = attend_tiles(
        state, query_MH, k_cache, v_cache, table, all_end, end, first_M, stop_M, end,
        block_stride, scaling, softcap, BLOCK_SIZE, K_DIM, V_DIM, K_PAD, V_PAD, TILE, True,
    )  # fmt: skip

    num_heads = tl.num_programs(0) * GROUP
    v_dims = tl.arange(0, V_PAD)[None, :]
    tl.store(
        out + ((token_M * num_heads + head_M) * V_DIM)[:, None] + v_dims,
        mean(out_MV, total_M).to(out.dtype.element_ty),
        mask=is_row_M[:, None] & (v_dims < V_DIM),
    )


@triton.jit
def _split(row, budget, MAX_SPLITS: tl.constexpr, MIN_KEYS: tl.constexpr, TILE: tl.constexpr):
    """How one decode's keys are cut: slots of the first tile and past the last key, number of
    splits and tiles of a split. No split is empty; a row without keys has none."""
    first, stop, batch_keys = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    begin = first // TILE * TILE
    num_tiles = tl.cdiv(stop - begin, TILE)
    # Long contexts are cut finer than short ones: all splits of a batch take about as long.
    keys_per_split = tl.maximum(tl.cdiv(batch_keys, budget), MIN_KEYS)
    wanted = tl.minimum(tl.cdiv(stop - begin, keys_per_split), MAX_SPLITS)
    tiles_per_split = tl.cdiv(num_tiles, tl.maximum(wanted, 1))
    num_splits = tl.cdiv(num_tiles, tl.maximum(tiles_per_split, 1))
    return first, stop, begin, num_splits, tiles_per_split


@triton.jit(do_not_specialize=["row_stride", "budget"])
def attend_decodes(
    out,
    split_out,
    split_sum,
    query,
    k_cache,
    v_cache,
    sinks,
    rows,
    row_stride,
    budget,
    query_head_stride,
    query_token_stride,
    block_stride,
    head_stride,
    scaling,
    softcap,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MIN_KEYS: tl.constexpr,
):
    """A program per KV head, sequence and split. With MAX_SPLITS 1 it writes ``out`` [S, N,
    V_DIM]; else its own result to ``split_out`` [S, N, MAX_SPLITS, V_DIM], and the logarithm
    of its sum of weights to ``split_sum`` [S, N, MAX_SPLITS], for ``join_splits``. MAX_SPLITS is a
    power of two."""
    kv_head, seq, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row = rows + seq * row_stride
    first, stop, begin, num_splits, tiles_per_split = _split(
        row, budget, MAX_SPLITS, MIN_KEYS, TILE
    )
    if MAX_SPLITS > 1 and split >= num_splits:
        return
    begin += split * tiles_per_split * TILE
    end = tl.minimum(begin + tiles_per_split * TILE, stop)

    m = tl.arange(0, M)
    head_M = kv_head * GROUP + m
    is_row_M = m < GROUP
    dims = tl.arange(0, K_PAD)[None, :]
    query_MH = tl.load(
        query
        + seq * query_token_stride
        + (head_M.to(tl.int64) * query_head_stride)[:, None]
        + dims,
        mask=is_row_M[:, None] & (dims < K_DIM),
        other=0.0,
    )
    k_cache += kv_head.to(tl.int64) * head_stride
    v_cache += kv_head.to(tl.int64) * head_stride
    if MAX_SPLITS == 1:
        state = start_state(sinks, head_M, is_row_M, M, V_PAD)
    else:
        state = start_state(None, head_M, is_row_M, M, V_PAD)
    first_M = tl.zeros([M], tl.int32) + first
    stop_M = tl.zeros([M], tl.int32) + stop
    out_MV, top_M, total_M = attend_tiles(
        state, query_MH, k_cache, v_cache, row + ROW_HEADER, begin, end, first_M, stop_M, stop,
        block_stride, scaling, softcap, BLOCK_SIZE, K_DIM, V_DIM, K_PAD, V_PAD, TILE, True,
    )  # fmt: skip

    out_MV = mean(out_MV, total_M)
    seq_head_M = seq * tl.num_programs(0) * GROUP + head_M
    v_dims = tl.arange(0, V_PAD)[None, :]
    is_value = is_row_M[:, None] & (v_dims < V_DIM)
    if MAX_SPLITS == 1:
        pointers = out + (seq_head_M * V_DIM)[:, None] + v_dims
        tl.store(pointers, out_MV.to(out.dtype.element_ty), mask=is_value)
    else:
        at_M = seq_head_M * MAX_SPLITS + split
        tl.store(split_sum + at_M, top_M + tl.log2(total_M), mask=is_row_M)
        tl.store(split_out + (at_M * V_DIM)[:, None] + v_dims, out_MV, mask=is_value)


@triton.jit(do_not_specialize=["row_stride", "budget"])
def join_splits(
    out,
    split_out,
    split_sum,
    sinks,
    rows,
    row_stride,
    budget,
    V_DIM: tl.constexpr,
    V_PAD: tl.constexpr,
    TILE: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    MIN_KEYS: tl.constexpr,
):
    """A program per query head and sequence: the splits' results, weighted by their sums."""
    head, seq = tl.program_id(0), tl.program_id(1).to(tl.int64)
    _, _, _, num_splits, _ = _split(rows + seq * row_stride, budget, MAX_SPLITS, MIN_KEYS, TILE)
    seq_head = seq * tl.num_programs(0) + head
    splits = tl.arange(0, MAX_SPLITS)
    is_split = splits < num_splits
    at = seq_head * MAX_SPLITS + splits
    sums = tl.load(split_sum + at, mask=is_split, other=float("-inf"))
    top = tl.max(sums, 0)
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        top = tl.maximum(top, sink)
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(sums - top)
    total = tl.sum(weights, 0)
    if sinks is not None:
        total += tl.exp2(sink - top)
    v_dims = tl.arange(0, V_PAD)
    outs = tl.load(
        split_out + (at * V_DIM)[:, None] + v_dims[None, :],
        mask=is_split[:, None] & (v_dims < V_DIM)[None, :],
        other=0.0,
    )
    joined = tl.sum(outs * weights[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    pointers = out + seq_head * V_DIM + v_dims
    tl.store(pointers, joined.to(out.dtype.element_ty), mask=v_dims < V_DIM)
