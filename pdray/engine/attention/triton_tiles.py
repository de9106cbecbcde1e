"""What prompts and decodes share: tiles of keys read out of their blocks, and the running softmax.

Offsets into the arena are 64-bit; a *slot* is a position less that of its table's first block.
Dots and sums are fp32, of fp32 operands without tf32. Exponentials are to base 2.

Suffixes: M rows of a tile (queries times the query heads of one KV head), C keys of a tile,
H and V the padded key and value head dims.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _dot(a, b, c):
    if IS_INTERPRETED:
        # The interpreter multiplies the bits of bf16 as integers.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def _rows_in_arena(
    table,
    start,
    stop,
    block_stride,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """[C]: offsets of the blocks of keys ``start ...`` and the keys' offsets in them."""
    keys_C = start + tl.arange(0, TILE)
    if BLOCK_SIZE % TILE == 0:
        block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
        blocks_C = tl.zeros([TILE], tl.int64) + block * block_stride
    elif MASKED:
        blocks_C = tl.load(table + keys_C // BLOCK_SIZE, mask=keys_C < stop, other=0)
        blocks_C = blocks_C.to(tl.int64) * block_stride
    else:
        blocks_C = tl.load(table + keys_C // BLOCK_SIZE).to(tl.int64) * block_stride
    return blocks_C, keys_C % BLOCK_SIZE


@triton.jit
def _load_tile(
    cache, blocks_C, offsets_C, is_key_C, DIM: tl.constexpr, PAD: tl.constexpr, MASKED: tl.constexpr
):
    """[C, PAD]"""
    dims = tl.arange(0, PAD)[None, :]
    pointers = cache + (blocks_C[:, None] + offsets_C[:, None] * DIM + dims)
    if MASKED:
        return tl.load(pointers, mask=is_key_C[:, None] & (dims < DIM), other=0.0)
    if DIM == PAD:
        return tl.load(pointers)
    return tl.load(pointers, mask=dims < DIM, other=0.0)


@triton.jit
def _cap(scores, softcap):
    """``softcap * tanh(scores / softcap)``"""
    doubled = tl.exp2(scores * (2.0 * LOG2E / softcap))
    return softcap - 2.0 * softcap / (doubled + 1.0)


@triton.jit
def attend_tiles(
    state,
    query_MH,
    k_cache,
    v_cache,
    table,
    begin,
    end,
    first_M,
    stop_M,
    stop,
    block_stride,
    scaling,
    softcap,
    BLOCK_SIZE: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PAD: tl.constexpr,
    V_PAD: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Adds the keys of slots [begin, end), in tiles, to the running softmax ``state``. MASKED:
    row m sees slots [first_M[m], stop_M[m]) of them, and none from ``stop`` on is loaded."""
    out_MV, top_M, total_M = state
    for start in range(begin, end, TILE):
        blocks_C, offsets_C = _rows_in_arena(
            table, start, stop, block_stride, BLOCK_SIZE, TILE, MASKED
        )
        keys_C = start + tl.arange(0, TILE)
        is_key_C = keys_C < stop
        key_CH = _load_tile(k_cache, blocks_C, offsets_C, is_key_C, K_DIM, K_PAD, MASKED)
        scores_MC = tl.zeros([query_MH.shape[0], TILE], tl.float32)
        scores_MC = _dot(query_MH, tl.trans(key_CH), scores_MC)
        if softcap is None:
            scores_MC = scores_MC * (scaling * LOG2E)
        else:
            scores_MC = _cap(scores_MC * scaling, softcap) * LOG2E
        if MASKED:
            seen = keys_C[None, :] < stop_M[:, None]
            if first_M is not None:
                seen = seen & (keys_C[None, :] >= first_M[:, None])
            scores_MC = tl.where(seen, scores_MC, float("-inf"))
        new_top_M = tl.maximum(top_M, tl.max(scores_MC, 1))
        # A row that has seen no key yet has a top of -inf, and -inf - -inf is none of its business.
        base_M = tl.where(new_top_M == float("-inf"), 0.0, new_top_M)
        weights_MC = tl.exp2(scores_MC - base_M[:, None])
        shrink_M = tl.exp2(top_M - base_M)
        total_M = total_M * shrink_M + tl.sum(weights_MC, 1)
        value_CV = _load_tile(v_cache, blocks_C, offsets_C, is_key_C, V_DIM, V_PAD, MASKED)
        out_MV = out_MV * shrink_M[:, None]
        out_MV = _dot(weights_MC.to(value_CV.dtype), value_CV, out_MV)
        top_M = new_top_M
    return out_MV, top_M, total_M


@triton.jit
def start_state(sinks, head_M, is_row_M, M: tl.constexpr, V_PAD: tl.constexpr):
    """The state before any key: a sink counts as one, with a value of zeros."""
    out_MV = tl.zeros([M, V_PAD], tl.float32)
    if sinks is None:
        top_M = tl.full([M], float("-inf"), tl.float32)
        total_M = tl.zeros([M], tl.float32)
    else:
        top_M = tl.load(sinks + head_M, mask=is_row_M, other=0.0).to(tl.float32) * LOG2E
        total_M = tl.full([M], 1.0, tl.float32)
    return out_MV, top_M, total_M


@triton.jit
def mean(out_MV, total_M):
    """Zeros in a row that saw no key."""
    return out_MV / tl.where(total_M == 0.0, 1.0, total_M)[:, None]
