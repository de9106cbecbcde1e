"""Attention of prompts' chunks on a CPU: tiles of queries against the keys they see, through the
same matrix kernels as the linear layers. In fp32 whatever the cache keeps, as bf16 scores would
be too coarse.

Tensor suffixes as in base.py; G query heads of one KV head, R the queries of a tile, C its keys.
The scores of one tile and KV head are in memory at a time, never a prompt's whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pdray.engine.attention import cpu_kernels
from pdray.engine.attention.base import AttentionParams, GroupBatch
from pdray.engine.attention.prompts import PromptRows, context_of, plan_prompts
from pdray.engine.openmp import compile_body, float_bits, launch
from pdray.kvcache.storage import LayerCache

TILE_QUERIES = 128
"""Larger ones compute more that the mask hides, smaller ones feed the matrix kernels less."""
MAX_SCORES = 1 << 23
"""In memory at a time: 32 MiB."""


class TiledPrompts:
    """One step's prompts, for the layers of one KV group."""

    def __init__(self, batch: GroupBatch) -> None:
        self._window = batch.sliding_window
        self._prompts = plan_prompts(batch, torch.device("cpu"))
        self._num_threads = torch.get_num_threads()
        self._softmax = compile_body(cpu_kernels.mask_and_softmax)

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
            group = query_NTH.shape[0] // key_KCH.shape[0]
            for kv_head in range(key_KCH.shape[0]):
                heads = slice(kv_head * group, (kv_head + 1) * group)
                self._attend_heads(
                    prompt,
                    query_NTH[heads, rows].float(),
                    key_KCH[kv_head].float().contiguous(),
                    value_KCH[kv_head].float().contiguous(),
                    params,
                    heads,
                    out_TNH[rows, heads],
                )

    def _attend_heads(
        self,
        prompt: PromptRows,
        query_GTH: torch.Tensor,
        key_CH: torch.Tensor,
        value_CH: torch.Tensor,
        params: AttentionParams,
        heads: slice,
        out_TGH: torch.Tensor,
    ) -> None:
        group, num_queries, head_dim = query_GTH.shape
        # Held here while a kernel reads it by its address.
        sinks = None if params.sinks_N is None else params.sinks_N[heads].float()
        for start, end in self._tiles(num_queries, group * len(key_CH)):
            query_position = prompt.query_start + start
            first_key = prompt.first_position
            if self._window is not None:
                first_key = max(first_key, query_position - self._window + 1)
            skipped = first_key - prompt.first_position
            num_keys = prompt.query_start + end - first_key
            key, value = key_CH[skipped:][:num_keys], value_CH[skipped:][:num_keys]
            queries = query_GTH[:, start:end].reshape(-1, head_dim)
            scores = _product(queries, key)
            launch(
                self._softmax,
                self._num_threads,
                (
                    len(scores),
                    end - start,
                    num_keys,
                    scores.data_ptr(),
                    query_position - first_key,
                    self._window or 0,
                    float_bits(params.scaling),
                    float_bits(params.softcap or 0.0),
                    0 if sinks is None else sinks.data_ptr(),
                ),
            )
            out = _product(scores, value.t())
            out_TGH[start:end] = out.view(group, end - start, -1).transpose(0, 1)

    def _tiles(self, num_queries: int, scores_per_query: int) -> Iterator[tuple[int, int]]:
        size = max(1, min(TILE_QUERIES, MAX_SCORES // scores_per_query))
        for start in range(0, num_queries, size):
            yield start, min(start + size, num_queries)


def _product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows @ weight.T``, as a linear layer has it; twice as fast as torch's own on some CPUs."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return product
