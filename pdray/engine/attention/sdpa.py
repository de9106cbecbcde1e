"""The reference backend: gathers each sequence's blocks, then plain torch. Any device.

Tensor suffixes as in scores.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.engine.attention.base import AttentionParams, GroupBatch, IntArray
from pdray.engine.attention.prompts import PromptAttention
from pdray.engine.attention.scores import additive, gather, softmax
from pdray.engine.upload import refill, upload
from pdray.kvcache.storage import LayerCache


class SdpaBackend:
    def plan(self, batch: GroupBatch, device: torch.device) -> SdpaGroupAttention:
        return SdpaGroupAttention(batch, device)

    def plan_static(self, batch: GroupBatch, max_blocks: int, device: torch.device) -> SdpaDecodes:
        return SdpaDecodes(batch, max_blocks, device)


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Decodes with about equally many blocks: one padded gather serves them all."""

    rows: torch.Tensor
    block_ids: torch.Tensor
    """Flat, [S * B]."""
    mask_SC: torch.Tensor
    """Added to the scores: 0 or -inf."""


class SdpaGroupAttention:
    def __init__(self, batch: GroupBatch, device: torch.device) -> None:
        self._slot_blocks = upload(batch.slot_blocks_T, device)
        self._slot_offsets = upload(batch.slot_offsets_T, device)
        self._decodes = _plan_decodes(batch, device)
        self._prompts = PromptAttention(batch, device)

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        _write(cache, key_KTH, value_KTH, self._slot_blocks, self._slot_offsets)
        num_heads, num_tokens, _ = query_NTH.shape
        out_TNH = query_NTH.new_empty(num_tokens, num_heads, value_KTH.shape[-1])
        for decodes in self._decodes:
            out_TNH[decodes.rows] = _attend_decodes(cache, query_NTH, decodes, params)
        self._prompts.attend(cache, query_NTH, key_KTH, value_KTH, params, out_TNH)
        return out_TNH


class SdpaDecodes:
    """Gathers all that a table can hold."""

    def __init__(self, batch: GroupBatch, max_blocks: int, device: torch.device) -> None:
        self._max_blocks = max_blocks
        self._arrays = [upload(array, device).clone() for array in self._plan(batch)]

    def refill(self, batch: GroupBatch) -> None:
        for target, array in zip(self._arrays, self._plan(batch), strict=True):
            refill(target, array)

    def _plan(self, batch: GroupBatch) -> list[IntArray | NDArray[np.bool_]]:
        num_missing = self._max_blocks - batch.block_tables_SB.shape[1]
        tables = np.pad(batch.block_tables_SB, ((0, 0), (0, num_missing)), mode="edge")
        rows = np.arange(batch.num_decodes)
        seen = _seen_keys(batch, rows, self._max_blocks)
        return [batch.slot_blocks_T, batch.slot_offsets_T, rows, tables.reshape(-1), seen]

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        slot_blocks, slot_offsets, rows, block_ids, seen = self._arrays
        _write(cache, key_KTH, value_KTH, slot_blocks, slot_offsets)
        return _attend_decodes(
            cache, query_NTH, DecodeRows(rows, block_ids, additive(seen)), params
        )


def _write(
    cache: LayerCache,
    key_KTH: torch.Tensor,
    value_KTH: torch.Tensor,
    slot_blocks: torch.Tensor,
    slot_offsets: torch.Tensor,
) -> None:
    slots = (slot_blocks, slice(None), slot_offsets)
    cache.k_BKPH[slots] = key_KTH.transpose(0, 1)
    cache.v_BKPH[slots] = value_KTH.transpose(0, 1)


def _plan_decodes(batch: GroupBatch, device: torch.device) -> list[DecodeRows]:
    """Decodes by length, to a power of two of blocks, so that padding at most doubles the work."""
    count = batch.num_decodes
    sizes = np.ceil(np.log2(batch.num_blocks_S[:count])).astype(np.int64)
    plans = []
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        width = int(batch.num_blocks_S[rows].max())
        tables = batch.block_tables_SB[rows, :width]
        plans.append(
            DecodeRows(
                upload(rows, device),
                upload(tables.reshape(-1), device),
                additive(upload(_seen_keys(batch, rows, width), device)),
            )
        )
    return plans


def _seen_keys(batch: GroupBatch, rows: IntArray, num_blocks: int) -> NDArray[np.bool_]:
    """[rows, keys of so many blocks]: which keys each decode sees."""
    first_positions = batch.first_blocks_S[rows] * batch.block_size
    keys = first_positions[:, None] + np.arange(num_blocks * batch.block_size)
    queries = batch.query_starts_S[rows][:, None]
    seen: NDArray[np.bool_] = keys <= queries
    if batch.sliding_window is not None:
        seen &= keys > queries - batch.sliding_window
    return seen


def _attend_decodes(
    cache: LayerCache, query_NTH: torch.Tensor, decodes: DecodeRows, params: AttentionParams
) -> torch.Tensor:
    """[S, N, H]."""
    num_seqs, context = decodes.mask_SC.shape
    num_kv_heads = cache.k_BKPH.shape[1]
    key = gather(cache.k_BKPH, decodes.block_ids).view(num_kv_heads * num_seqs, context, -1)
    value = gather(cache.v_BKPH, decodes.block_ids).view(num_kv_heads * num_seqs, context, -1)
    num_heads, _, head_dim = query_NTH.shape
    query_NSH = query_NTH[:, decodes.rows]
    query = query_NSH.view(num_kv_heads, -1, num_seqs, head_dim).transpose(1, 2)
    scores = torch.bmm(query.reshape(num_kv_heads * num_seqs, -1, head_dim), key.transpose(1, 2))
    scores_KSGC = scores.view(num_kv_heads, num_seqs, -1, context)
    sinks = params.sinks_N
    sinks_KSG = None if sinks is None else sinks.view(num_kv_heads, 1, -1).expand(-1, num_seqs, -1)
    weights = softmax(scores_KSGC, decodes.mask_SC[:, None], sinks_KSG, params)
    out = torch.bmm(weights.to(value.dtype).view(num_kv_heads * num_seqs, -1, context), value)
    out_KSGH = out.view(num_kv_heads, num_seqs, -1, out.shape[-1])
    return out_KSGH.transpose(0, 1).reshape(num_seqs, num_heads, -1)
