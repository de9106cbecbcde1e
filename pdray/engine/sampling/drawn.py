"""The rows of a step whose token is drawn at random, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from pdray.engine.sampling.choosing import draw_uniform
from pdray.engine.sequence import Sequence
from pdray.engine.upload import upload


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """One entry for each of R rows, of which ``rows_R`` are the numbers in the batch."""

    rows_R: torch.Tensor
    best_R: torch.Tensor
    """The largest logit."""
    temperatures_R: torch.Tensor
    min_ps_R: torch.Tensor
    top_ks_R: torch.Tensor
    """0 for no limit."""
    top_ps_R: torch.Tensor
    noise_R: torch.Tensor
    totals_R: torch.Tensor
    """The weights of all tokens, where somebody has added them up."""

    @classmethod
    def of(
        cls, drawn: list[tuple[int, Sequence]], best_S: torch.Tensor, num_unread: int = 0
    ) -> DrawnRows:
        """Of (row in the batch, sequence), whose next ``num_unread`` tokens are drawn already."""
        table = [
            (
                row,
                seq.request.sampling.temperature,
                seq.request.sampling.min_p,
                seq.request.sampling.top_k or 0,
                seq.request.sampling.top_p,
                draw_uniform(seq.request.sampling.seed, len(seq.output_token_ids) + num_unread),
            )
            for row, seq in drawn
        ]
        columns = upload(np.array(table, np.float64), best_S.device).unbind(1)
        rows_R, temperatures_R, min_ps_R, top_ks_R, top_ps_R, noise_R = columns
        rows_R = rows_R.long()
        return cls(
            rows_R=rows_R,
            best_R=best_S[rows_R],
            temperatures_R=temperatures_R.float(),
            min_ps_R=min_ps_R,
            top_ks_R=top_ks_R.long(),
            top_ps_R=top_ps_R,
            noise_R=noise_R,
            totals_R=torch.zeros_like(noise_R),
        )

    def at(self, places: torch.Tensor) -> DrawnRows:
        return DrawnRows(*(getattr(self, each.name)[places] for each in fields(self)))
