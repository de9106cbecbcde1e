"""Draws a step's random rows, each in the cheapest way that is exact."""

from __future__ import annotations

import numpy as np
import torch

from pdray.engine.sampling.blocks import BlockMaxima
from pdray.engine.sampling.drawn import DrawnRows
from pdray.engine.sampling.filtering import draw_filtered
from pdray.engine.sampling.scratch import Scratch
from pdray.engine.sampling.weighing import weigh
from pdray.engine.sequence import Sequence
from pdray.engine.upload import upload


def draw_tokens(
    logits_SV: torch.Tensor,
    maxima: BlockMaxima,
    drawn: list[tuple[int, Sequence]],
    scratch: Scratch,
    num_unread: int,
) -> torch.Tensor:
    """[S] tokens: drawn for each of ``drawn`` (row of the logits, sequence), else the best."""
    sampling = [seq.request.sampling for _, seq in drawn]
    rows = DrawnRows.of(drawn, maxima.best_S, num_unread)
    token_ids_R = torch.empty_like(rows.rows_R)
    # The weight of the whole vocabulary is what top_p is a part of, unless top_k or min_p have
    # cut before it.
    weighed = [i for i, each in enumerate(sampling) if each.top_k is None and not each.min_p]
    if weighed:
        places = upload(np.array(weighed), token_ids_R.device)
        part = rows.at(places)
        weights = weigh(logits_SV, maxima, part.rows_R, part.temperatures_R, scratch)
        rows.totals_R[places] = weights.totals_R
        token_ids_R[places] = weights.draw(part.noise_R)
    filtered = [i for i, each in enumerate(sampling) if each.is_filtered]
    if filtered:
        places = upload(np.array(filtered), token_ids_R.device)
        token_ids_R[places] = draw_filtered(maxima, rows.at(places), logits_SV.shape[1])
    return maxima.best_ids_S.index_copy(0, rows.rows_R, token_ids_R)
