"""Logits to tokens. The noise of a token depends on its request's seed and output index alone:
the same in any batch, on any worker, in any attempt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pdray.core.request import SamplingParams

NUCLEUS_FIRST_TRY = 1024
"""Tokens that hold all of top_p nearly always, at a small part of a full sort's cost."""


def sample(logits_SV: torch.Tensor, rows: Sequence[tuple[SamplingParams, int]]) -> list[int | None]:
    """One token for each row of (params, output index); None where the logits are not numbers."""
    if not rows:
        return []
    best = logits_SV.max(dim=-1)
    is_good = torch.isfinite(best.values).tolist()
    token_ids: list[int | None] = list(best.indices.tolist())
    for row, (params, index) in enumerate(rows):
        if not is_good[row]:
            token_ids[row] = None
        elif not params.is_greedy:
            noise = draw_uniform(params.seed, index)
            token_ids[row] = sample_row(logits_SV[row].float(), params, noise)
    return token_ids


def draw_uniform(seed: int, index: int) -> float:
    """In [0, 1), the same for the same arguments on every machine."""
    bits = np.random.Philox(key=seed % (1 << 64), counter=index).random_raw()
    return float(int(bits) >> 11) * 2.0**-53


def sample_row(logits_V: torch.Tensor, params: SamplingParams, noise: float) -> int:
    """Inverts the distribution's cumulative sum, over the kept tokens in order of their ids."""
    logits = logits_V / params.temperature
    kept = _kept_tokens(logits, params)
    if kept is not None:
        logits = logits[kept]
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Times the total, which rounding leaves a little off 1.
    target = (cumulative[-1] * noise).reshape(1)
    position = int(torch.searchsorted(cumulative, target, right=True))
    position = min(position, len(cumulative) - 1)
    return position if kept is None else int(kept[position])


def _kept_tokens(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor | None:
    """Ids that top_k and, of what it leaves, top_p keep, ascending; None for all of them."""
    vocab_size = logits.shape[-1]
    top_k = min(params.top_k or vocab_size, vocab_size)
    if params.top_p < 1.0:
        return _nucleus(logits, top_k, params.top_p).sort().values
    if top_k < vocab_size:
        return logits.topk(top_k).indices.sort().values
    return None


def _nucleus(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The fewest likeliest tokens, of the best ``top_k``, that hold ``top_p`` of their weight."""
    is_cut = top_k < logits.shape[-1]
    count = top_k if is_cut else min(NUCLEUS_FIRST_TRY, top_k)
    best, token_ids = logits.topk(count)
    log_total = torch.logsumexp(best if is_cut else logits, dim=-1)
    cumulative = (best - log_total).double().exp().cumsum(dim=-1)
    if count < top_k and cumulative[-1] < top_p:
        best, token_ids = logits.sort(descending=True)
        cumulative = (best - log_total).double().exp().cumsum(dim=-1)
    num_before = int((cumulative < top_p).sum())
    return token_ids[: num_before + 1]
