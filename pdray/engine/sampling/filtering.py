"""Which tokens min_p, top_k and top_p leave, in that order; then one of them is drawn.

Each keeps a beginning of the tokens by likelihood, so the few likeliest candidates usually
hold all that is kept; a row where they do not gets more. Tokens that tie with the last one kept
are kept too: what is kept depends on the logits alone. Suffixes as in blocks.py.
"""

from __future__ import annotations

import torch

from pdray.engine.sampling.blocks import BlockMaxima, Candidates
from pdray.engine.sampling.choosing import draw_one_of
from pdray.engine.sampling.drawn import DrawnRows

FIRST_CANDIDATES = (128, 4096, 65536)
"""How many are tried before the whole vocabulary is sorted, which takes three times as long as
the last of them."""


def draw_filtered(maxima: BlockMaxima, wanted: DrawnRows, vocab_size: int) -> torch.Tensor:
    """[R] token ids. Of ``totals_R``, only those are looked at that neither top_k nor min_p
    cuts."""
    token_ids_R = torch.zeros_like(wanted.rows_R)
    open_R = torch.arange(len(wanted.rows_R), device=token_ids_R.device)
    for count in _candidate_counts(vocab_size, token_ids_R.device):
        part = wanted.at(open_R)
        candidates = maxima.largest(part.rows_R, count)
        weights_RK, is_settled_R = kept_weights(candidates, part)
        token_ids_R[open_R] = draw_one_of(candidates.token_ids_RK, weights_RK, part.noise_R)
        if candidates.is_whole or is_settled_R.all():
            break
        open_R = open_R[~is_settled_R]
    return token_ids_R


def _candidate_counts(vocab_size: int, device: torch.device) -> tuple[int, ...]:
    # Whether a row is settled is known on the device only; there, sorting all is cheaper than
    # waiting for it.
    few = FIRST_CANDIDATES if device.type == "cpu" else ()
    return (*(count for count in few if count < vocab_size), vocab_size)


def kept_weights(candidates: Candidates, part: DrawnRows) -> tuple[torch.Tensor, torch.Tensor]:
    """[R, K] weights, 0 for what is not kept, and [R] whether nothing else would be kept."""
    logits_RK = candidates.logits_RK
    weights_RK = ((logits_RK - part.best_R[:, None]) / part.temperatures_R[:, None]).exp()
    limited_RK = (weights_RK > 0.0) & (weights_RK >= part.min_ps_R[:, None])
    limited_RK &= logits_RK >= _kth_logits(logits_RK, part.top_ks_R)
    weights_RK = weights_RK * limited_RK
    totals_R = torch.where(
        (part.top_ks_R > 0) | (part.min_ps_R > 0.0),
        weights_RK.sum(-1, dtype=torch.float64),
        part.totals_R,
    )
    before_RK = weights_RK.cumsum(-1, dtype=torch.float64) - weights_RK
    in_nucleus_RK = before_RK < (part.top_ps_R * totals_R)[:, None]
    in_nucleus_RK |= (part.top_ps_R >= 1.0)[:, None]
    num_kept_R1 = (limited_RK & in_nucleus_RK).sum(-1, keepdim=True)
    last_kept_R1 = logits_RK.gather(1, (num_kept_R1 - 1).clamp(min=0))
    kept_RK = limited_RK & (logits_RK >= last_kept_R1)
    # Of those outside, none is likelier than the last candidate: if that one is cut, so are they.
    is_settled_R = ~kept_RK[:, -1]
    is_total_known_R = (part.top_ps_R >= 1.0) | ~limited_RK[:, -1]
    is_total_known_R |= (part.top_ks_R == 0) & (part.min_ps_R == 0.0)
    return weights_RK * kept_RK, is_settled_R & is_total_known_R


def _kth_logits(logits_RK: torch.Tensor, top_ks_R: torch.Tensor) -> torch.Tensor:
    """[R, 1] the k-th largest logit; minus infinity where k is no limit, or past the candidates
    (which are then not enough to settle the row)."""
    num_candidates = logits_RK.shape[1]
    places_R1 = (top_ks_R - 1).clamp(0, num_candidates - 1)[:, None]
    is_known_R1 = ((top_ks_R > 0) & (top_ks_R <= num_candidates))[:, None]
    return torch.where(is_known_R1, logits_RK.gather(1, places_R1), -torch.inf)
