"""Attention of prompts' chunks in plain torch, on any device.

Tensor suffixes as in scores.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pdray.engine.attention.base import AttentionParams, GroupBatch
from pdray.engine.attention.scores import additive, gather, softmax, visible
from pdray.kvcache.storage import LayerCache

MAX_SCORES = 1 << 24
"""Scores in memory at a time where they are made one by one: 64 MiB in fp32."""


@dataclass(frozen=True, slots=True)
class PromptRows:
    """A prompt's chunk: rows [start, end) of the step, positions from ``query_start`` on."""

    start: int
    end: int
    query_start: int
    first_position: int
    """Of the oldest key that any of its queries sees."""
    block_ids: torch.Tensor
    block_offset: int
    """Of that key in the first of the blocks."""


class PromptAttention:
    """One step's prompts, for the layers of one KV group."""

    def __init__(self, batch: GroupBatch, device: torch.device) -> None:
        self._device = device
        self._window = batch.sliding_window
        self._prompts = plan_prompts(batch, device)
        self._masks: dict[tuple[int, int], torch.Tensor | None] = {}

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
        out_TNH: torch.Tensor,
    ) -> None:
        """Fills the prompts' rows of ``out_TNH``; their keys are in the cache already."""
        for prompt in self._prompts:
            rows = slice(prompt.start, prompt.end)
            key_KCH, value_KCH = context_of(prompt, cache, key_KTH, value_KTH)
            out_NRH = self._attend_prompt(query_NTH[:, rows], key_KCH, value_KCH, prompt, params)
            out_TNH[rows] = out_NRH.transpose(0, 1)

    def _attend_prompt(
        self,
        query_NRH: torch.Tensor,
        key_KCH: torch.Tensor,
        value_KCH: torch.Tensor,
        prompt: PromptRows,
        params: AttentionParams,
    ) -> torch.Tensor:
        is_plain = params.softcap is None and params.sinks_N is None
        if is_plain and key_KCH.shape[-1] == value_KCH.shape[-1]:
            mask = self._mask(prompt)
            return F.scaled_dot_product_attention(
                query_NRH[None],
                key_KCH[None],
                value_KCH[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=params.scaling,
                enable_gqa=True,
            )[0]
        # One tile of queries at a time, or the scores of a long context would not fit.
        tile = max(1, MAX_SCORES // (query_NRH.shape[0] * key_KCH.shape[1]))
        num_rows = query_NRH.shape[1]
        outs = []
        for start in range(0, num_rows, tile):
            end = min(num_rows, start + tile)
            seen_RC = visible(
                range(prompt.query_start + start, prompt.query_start + end),
                range(prompt.first_position, prompt.first_position + key_KCH.shape[1]),
                self._window,
                self._device,
            )
            mask_RC = additive(seen_RC)
            queries = query_NRH[:, start:end]
            outs.append(_attend_explicitly(queries, key_KCH, value_KCH, mask_RC, params))
        return torch.cat(outs, dim=1)

    def _mask(self, prompt: PromptRows) -> torch.Tensor | None:
        """[R, C], True where a query sees a key; None for plain causal from position 0 on."""
        key = (prompt.start, prompt.end)
        if key not in self._masks:
            num_queries = prompt.end - prompt.start
            end = prompt.query_start + num_queries
            is_all_in_window = self._window is None or end <= self._window
            if prompt.query_start == 0 and is_all_in_window:
                self._masks[key] = None
            else:
                self._masks[key] = visible(
                    range(prompt.query_start, end),
                    range(prompt.first_position, end),
                    self._window,
                    self._device,
                )
        return self._masks[key]


def plan_prompts(batch: GroupBatch, device: torch.device) -> list[PromptRows]:
    ends = np.cumsum(batch.query_lens_S)
    plans = []
    for index in range(batch.num_decodes, len(ends)):
        num_queries = int(batch.query_lens_S[index])
        query_start = int(batch.query_starts_S[index])
        first_block = int(batch.first_blocks_S[index])
        first_position = first_block * batch.block_size
        if batch.sliding_window is not None:
            first_position = max(first_position, query_start - batch.sliding_window + 1)
        table = batch.block_tables_SB[index, : batch.num_blocks_S[index]]
        plans.append(
            PromptRows(
                start=int(ends[index]) - num_queries,
                end=int(ends[index]),
                query_start=query_start,
                first_position=first_position,
                block_ids=torch.from_numpy(np.ascontiguousarray(table)).to(device),
                block_offset=first_position - first_block * batch.block_size,
            )
        )
    return plans


def context_of(
    prompt: PromptRows, cache: LayerCache, key_KTH: torch.Tensor, value_KTH: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values that the prompt's queries see, given those of this step."""
    if prompt.query_start == 0:
        # The whole context is in this step: no need to read it back.
        rows = slice(prompt.start, prompt.end)
        return key_KTH[:, rows], value_KTH[:, rows]
    return _gather_context(cache, prompt)


def _gather_context(cache: LayerCache, prompt: PromptRows) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [K, C, H] from the first visible position to the chunk's end."""
    num_keys = prompt.query_start + prompt.end - prompt.start - prompt.first_position
    context = slice(prompt.block_offset, prompt.block_offset + num_keys)
    key_KCH = gather(cache.k_BKPH, prompt.block_ids)[:, context]
    value_KCH = gather(cache.v_BKPH, prompt.block_ids)[:, context]
    return key_KCH, value_KCH


def _attend_explicitly(
    query_NRH: torch.Tensor,
    key_KCH: torch.Tensor,
    value_KCH: torch.Tensor,
    mask_RC: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    """[N, R, H], the scores written out: for softcap, sinks, unequal head dims."""
    num_heads, num_queries, head_dim = query_NRH.shape
    num_kv_heads, context, _ = key_KCH.shape
    query = query_NRH.reshape(num_kv_heads, -1, head_dim)
    scores = torch.bmm(query, key_KCH.transpose(1, 2))
    scores_KGRC = scores.view(num_kv_heads, -1, num_queries, context)
    sinks = params.sinks_N
    sinks_KGR = (
        None if sinks is None else sinks.view(num_kv_heads, -1, 1).expand(-1, -1, num_queries)
    )
    weights = softmax(scores_KGRC, mask_RC, sinks_KGR, params)
    out = torch.bmm(weights.to(value_KCH.dtype).view(num_kv_heads, -1, context), value_KCH)
    return out.view(num_heads, num_queries, -1)
