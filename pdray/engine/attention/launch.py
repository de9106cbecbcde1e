"""Launches the Triton kernels: grids, tile sizes, strides. Nothing here waits for the device or
looks at what lies on it.

Suffixes as in base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton

from pdray.engine.attention import triton_kernels as kernels
from pdray.engine.attention.base import AttentionParams
from pdray.kvcache.storage import LayerCache

IS_INTERPRETED = not isinstance(kernels.write_rows, triton.JITFunction)
"""Decided when the kernels are defined, by the environment variable TRITON_INTERPRET."""

MIN_PAD = 16
"""Of every dimension of a matrix product."""
MIN_SPLIT_KEYS = 128
OVERSUBSCRIPTION = 4
"""Programs, as a multiple of those that run at once, so that a long context among short ones can
be cut finer than they are; splits that nobody needs end at once."""


@dataclass(frozen=True, slots=True)
class Tiling:
    rows: int
    """Queries times the query heads of one KV head."""
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    rows: torch.Tensor
    max_keys: int
    """That any row sees, at most."""
    num_programs: int
    """That the device runs at once."""


def pad(size: int) -> int:
    return max(MIN_PAD, _power_of_2(size))


def _power_of_2(size: int) -> int:
    """The next one, or itself."""
    return 1 << (size - 1).bit_length()


def prompt_tiling(group: int, head_pad: int, dtype: torch.dtype) -> Tiling:
    """``group`` query heads of one KV head fit in the rows."""
    if dtype == torch.float32:
        # Without tensor cores: sums wait in registers.
        tiling = Tiling(16, 32, 4, 1)
    elif head_pad <= 64:
        tiling = Tiling(128, 64, 4, 3)
    elif head_pad <= 128:
        tiling = Tiling(128, 64, 8, 3)
    else:
        tiling = Tiling(64, 32, 8, 2)
    rows = max(tiling.rows, _power_of_2(group))
    return Tiling(rows, tiling.keys, tiling.num_warps, tiling.num_stages)


def decode_tiling(group: int, head_pad: int, dtype: torch.dtype) -> Tiling:
    if dtype == torch.float32:
        return Tiling(pad(group), 32, 4, 2)
    return Tiling(pad(group), 64 if head_pad <= 128 else 32, 4, 3)


def max_splits(batch: DecodeBatch, num_kv_heads: int) -> int:
    """Of one sequence's keys, a power of two: what fills the device, where the batch does not."""
    wanted = OVERSUBSCRIPTION * batch.num_programs // (len(batch.rows) * num_kv_heads)
    limit = min(wanted, batch.num_programs // num_kv_heads, -(-batch.max_keys // MIN_SPLIT_KEYS))
    return 1 << (max(limit, 1).bit_length() - 1)


def write_rows(
    cache: LayerCache, key_KTH: torch.Tensor, value_KTH: torch.Tensor, slots_T: torch.Tensor
) -> None:
    """``slots_T``: a row per token that begins with its block and the offset there."""
    num_kv_heads, num_tokens, k_dim = key_KTH.shape
    v_dim = value_KTH.shape[-1]
    key_KTH, value_KTH = _rows(key_KTH), _rows(value_KTH)
    kernels.write_rows[(num_tokens,)](
        cache.k_BKPH,
        cache.v_BKPH,
        key_KTH,
        value_KTH,
        slots_T,
        slots_T.stride(0),
        *key_KTH.stride()[:2],
        *value_KTH.stride()[:2],
        *_arena_strides(cache),
        HEADS=num_kv_heads,
        HEADS_PAD=_power_of_2(num_kv_heads),
        K_DIM=k_dim,
        V_DIM=v_dim,
        K_PAD=pad(k_dim),
        V_PAD=pad(v_dim),
    )


def attend_prompts(
    cache: LayerCache,
    query_NTH: torch.Tensor,
    params: AttentionParams,
    rows: torch.Tensor,
    tiles_of: Callable[[int], torch.Tensor],
    sliding_window: int | None,
    out_TNH: torch.Tensor,
) -> None:
    """``tiles_of`` gives the tiles of that many queries."""
    shape = _shape(cache, query_NTH)
    tiling = prompt_tiling(shape["GROUP"], max(shape["K_PAD"], shape["V_PAD"]), query_NTH.dtype)
    tiles = tiles_of(tiling.rows // shape["GROUP"])
    query_NTH = _rows(query_NTH)
    kernels.attend_prompts[(cache.k_BKPH.shape[1], len(tiles))](
        out_TNH,
        query_NTH,
        cache.k_BKPH,
        cache.v_BKPH,
        params.sinks_N,
        rows,
        tiles,
        rows.stride(0),
        *query_NTH.stride()[:2],
        *_arena_strides(cache),
        params.scaling,
        params.softcap,
        sliding_window,
        **shape,
        M=tiling.rows,
        TILE=tiling.keys,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def attend_decodes(
    cache: LayerCache,
    query_NTH: torch.Tensor,
    params: AttentionParams,
    batch: DecodeBatch,
    out_TNH: torch.Tensor,
) -> None:
    """Token s is the query of row s."""
    shape = _shape(cache, query_NTH)
    tiling = decode_tiling(shape["GROUP"], max(shape["K_PAD"], shape["V_PAD"]), query_NTH.dtype)
    num_seqs, num_heads, num_kv_heads = len(batch.rows), len(query_NTH), cache.k_BKPH.shape[1]
    splits = max_splits(batch, num_kv_heads)
    budget = max(1, batch.num_programs // num_kv_heads)
    size = (num_seqs, num_heads, splits, shape["V_DIM"]) if splits > 1 else (0,)
    split_out = torch.empty(size, dtype=torch.float32, device=query_NTH.device)
    split_sum = torch.empty(size[:3], dtype=torch.float32, device=query_NTH.device)
    query_NTH = _rows(query_NTH)
    cut = {"TILE": tiling.keys, "MAX_SPLITS": splits, "MIN_KEYS": MIN_SPLIT_KEYS}
    kernels.attend_decodes[(num_kv_heads, num_seqs, splits)](
        out_TNH,
        split_out,
        split_sum,
        query_NTH,
        cache.k_BKPH,
        cache.v_BKPH,
        params.sinks_N,
        batch.rows,
        batch.rows.stride(0),
        budget,
        *query_NTH.stride()[:2],
        *_arena_strides(cache),
        params.scaling,
        params.softcap,
        **shape,
        M=tiling.rows,
        **cut,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if splits > 1:
        kernels.join_splits[(num_heads, num_seqs)](
            out_TNH,
            split_out,
            split_sum,
            params.sinks_N,
            batch.rows,
            batch.rows.stride(0),
            budget,
            V_DIM=shape["V_DIM"],
            V_PAD=shape["V_PAD"],
            **cut,
        )


def _shape(cache: LayerCache, query_NTH: torch.Tensor) -> dict[str, int]:
    """What the kernels are compiled for."""
    _, num_kv_heads, block_size, k_dim = cache.k_BKPH.shape
    v_dim = cache.v_BKPH.shape[-1]
    return {
        "GROUP": query_NTH.shape[0] // num_kv_heads,
        "BLOCK_SIZE": block_size,
        "K_DIM": k_dim,
        "V_DIM": v_dim,
        "K_PAD": pad(k_dim),
        "V_PAD": pad(v_dim),
    }


def _arena_strides(cache: LayerCache) -> tuple[int, int]:
    """From block to block and from head to head, the same for keys and values: they share blocks;
    a head's keys in a block are one run, and so are its values."""
    block_stride, head_stride, key_stride, _ = cache.k_BKPH.stride()
    assert cache.v_BKPH.stride()[:2] == (block_stride, head_stride)
    assert key_stride == cache.k_BKPH.shape[-1]
    return block_stride, head_stride


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With a contiguous last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
