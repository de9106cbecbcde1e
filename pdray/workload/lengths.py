"""How long prompts and outputs are, in tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def fixed_lengths(num_tokens: int) -> Iterator[int]:
    """The same length for ever."""
    _check_range(num_tokens, num_tokens)
    while True:
        yield num_tokens


def uniform_lengths(low: int, high: int, rng: random.Random) -> Iterator[int]:
    """Every whole number from ``low`` to ``high``, both included, is as likely."""
    _check_range(low, high)
    while True:
        yield rng.randint(low, high)


def lognormal_lengths(
    median: float, sigma: float, low: int, high: int, rng: random.Random
) -> Iterator[int]:
    """Many short and a few long, as in chats; ``sigma`` is the deviation of the logarithm.
    Values outside ``low`` to ``high`` are drawn up or down to it."""
    _check_range(low, high)
    if not median > 0 or not sigma >= 0:
        raise ValueError(f"median {median} must be above 0, and sigma {sigma} 0 or above")
    while True:
        # The exponent is bounded: beyond it the cap decides anyway, and exp would overflow.
        draw = rng.normalvariate(math.log(median), sigma)
        yield scaled_length(math.exp(min(draw, 700.0)), 1.0, low, high)


def scaled_length(num_tokens: float, factor: float, low: int, high: int) -> int:
    """A length times ``factor``, rounded, and drawn into ``low`` to ``high``."""
    return max(low, min(high, round(num_tokens * factor)))


def _check_range(low: int, high: int) -> None:
    if not 1 <= low <= high:
        raise ValueError(f"lengths from {low} to {high}: both must be at least 1, and in order")
