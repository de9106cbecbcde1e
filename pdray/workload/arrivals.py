"""When requests come: endless, in seconds from the start, never going back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator


def poisson_arrivals(rate_rps: float, rng: random.Random) -> Iterator[float]:
    """Independent users: exponential gaps with a mean of ``1 / rate_rps``."""
    _check_positive("rate_rps", rate_rps)
    now_s = 0.0
    while True:
        now_s += rng.expovariate(rate_rps)
        yield now_s


def constant_arrivals(rate_rps: float) -> Iterator[float]:
    """One request every ``1 / rate_rps`` seconds, the first at once."""
    _check_positive("rate_rps", rate_rps)
    count = 0
    while True:
        # Not a running sum: its rounding error would grow with every request.
        yield count / rate_rps
        count += 1


def scaled_arrivals(arrivals_s: Iterable[float], speed: float) -> Iterator[float]:
    """A trace's arrivals ``speed`` times as fast, the first at 0. Ends with the trace."""
    _check_positive("speed", speed)
    first_s: float | None = None
    for arrival_s in arrivals_s:
        if first_s is None:
            first_s = arrival_s
        yield (arrival_s - first_s) / speed


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value}; it must be above 0")
