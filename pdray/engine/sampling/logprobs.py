"""Logprobs of given tokens, and of the likeliest ones beside them.

They come as rows of 32-bit integers, so that all of a step's results are one tensor and one
transfer: token id, rank, logprob, N top ids, N top logprobs; a logprob is there as its bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pdray.core.logprobs import TokenLogprobs
from pdray.engine.sampling.blocks import BlockMaxima, reduce_blocks
from pdray.engine.sampling.scratch import Scratch
from pdray.engine.sampling.weighing import weigh


def pack_logprobs(
    logits_LV: torch.Tensor, token_ids_L: torch.Tensor, num_top: int, scratch: Scratch
) -> torch.Tensor:
    """[L, 3 + 2 * num_top] of the model's own logits, float32; leaves them as they are."""
    maxima = BlockMaxima(logits_LV)
    rows_L = torch.arange(len(logits_LV), device=logits_LV.device)
    own_L1 = logits_LV.gather(1, token_ids_L[:, None])
    ranks_L1 = _num_likelier(logits_LV, maxima, rows_L, own_L1, scratch) + 1
    weights = weigh(logits_LV, maxima, rows_L, torch.ones_like(maxima.best_S), scratch)
    log_totals_L1 = maxima.best_S[:, None] + weights.totals_R[:, None].log()
    columns = [token_ids_L[:, None].int(), ranks_L1.int(), _bits(own_L1 - log_totals_L1)]
    if num_top:
        top = maxima.largest(rows_L, num_top)
        columns += [top.token_ids_RK.int(), _bits(top.logits_RK - log_totals_L1)]
    return torch.cat(columns, dim=1)


def _num_likelier(
    logits_LV: torch.Tensor,
    maxima: BlockMaxima,
    rows_L: torch.Tensor,
    own_L1: torch.Tensor,
    scratch: Scratch,
) -> torch.Tensor:
    """[L, 1] tokens of each row."""
    compiled = maxima.compiled(rows_L)
    if compiled is not None:
        return compiled.count_above(own_L1[:, 0])[:, None]
    memory_LV = scratch.matrix(logits_LV.shape, logits_LV.device)
    above_LV = torch.gt(logits_LV, own_L1, out=memory_LV)
    return reduce_blocks(torch.sum, above_LV).sum(-1, keepdim=True)


def _bits(logprobs: torch.Tensor) -> torch.Tensor:
    return logprobs.float().view(torch.int32)


def unpack_logprobs(packed_W: npt.NDArray[np.int32], num_top: int) -> TokenLogprobs:
    """One row; of its top tokens, the first ``num_top``."""
    logprobs_W = packed_W.view(np.float32)
    tops_at = 3 + (len(packed_W) - 3) // 2
    return TokenLogprobs(
        token_id=int(packed_W[0]),
        rank=int(packed_W[1]),
        logprob=float(logprobs_W[2]),
        top_token_ids=tuple(packed_W[3 : 3 + num_top].tolist()),
        top_logprobs=tuple(logprobs_W[tops_at : tops_at + num_top].tolist()),
    )
