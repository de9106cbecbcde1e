"""How likely a model found tokens: plain data that every layer shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """One token's logprob in the model's own distribution (before bias, penalties, temperature),
    and the likeliest tokens there, best first; the token itself may be among them.

    ``rank`` is 1 for the likeliest.
    """

    token_id: int
    logprob: float
    rank: int
    top_token_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]
