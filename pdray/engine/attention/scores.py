"""What the torch backends share: gathering blocks, masks, and the softmax of masked scores.

Tensor suffixes as in base.py; R queries of one sequence, C its context, G query heads of one
KV head.
"""

from __future__ import annotations

import torch

from pdray.engine.attention.base import AttentionParams


def gather(cache_BKPH: torch.Tensor, block_ids: torch.Tensor) -> torch.Tensor:
    """[K, ids * P, H]. Head by head, as heads are outermost in a block: one copy, no transpose."""
    _, num_heads, block_size, head_dim = cache_BKPH.shape
    out = cache_BKPH.new_empty(num_heads, len(block_ids), block_size, head_dim)
    for head in range(num_heads):
        torch.index_select(cache_BKPH[:, head], 0, block_ids, out=out[head])
    return out.view(num_heads, -1, head_dim)


def softmax(
    scores: torch.Tensor,
    mask: torch.Tensor,
    sinks: torch.Tensor | None,
    params: AttentionParams,
) -> torch.Tensor:
    """Over the last dimension, in fp32. A sink takes its share of the weight and gives nothing."""
    scores = scores.float() * params.scaling
    if params.softcap is not None:
        scores = torch.tanh(scores / params.softcap) * params.softcap
    scores = scores + mask
    if sinks is None:
        return scores.softmax(dim=-1)
    with_sink = torch.cat([scores, sinks.float()[..., None]], dim=-1)
    return with_sink.softmax(dim=-1)[..., :-1].contiguous()


def visible(queries: range, keys: range, window: int | None, device: torch.device) -> torch.Tensor:
    """[R, C], True where the query at a position sees the key at another."""
    query_R1 = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key_C = torch.arange(keys.start, keys.stop, device=device)
    seen = key_C <= query_R1
    return seen if window is None else seen & (key_C > query_R1 - window)


def additive(seen: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(seen.shape, device=seen.device)
    return zeros.masked_fill_(~seen, float("-inf"))
