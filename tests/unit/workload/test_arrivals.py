from __future__ import annotations

import random
from itertools import islice, pairwise

import pytest

from pdray.workload.arrivals import constant_arrivals, poisson_arrivals, scaled_arrivals


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    arrivals_s = list(islice(poisson_arrivals(4.0, random.Random(1)), 20_000))
    gaps_s = [after - before for before, after in pairwise(arrivals_s)]
    mean_s = sum(gaps_s) / len(gaps_s)
    variance = sum((gap_s - mean_s) ** 2 for gap_s in gaps_s) / len(gaps_s)
    assert mean_s == pytest.approx(0.25, rel=0.03)
    assert variance**0.5 == pytest.approx(0.25, rel=0.03)
    assert min(gaps_s) >= 0


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(islice(poisson_arrivals(2.0, random.Random(7)), 50)) for _ in range(2))
    assert first == second


def test_constant_arrivals_do_not_drift() -> None:
    arrivals_s = list(islice(constant_arrivals(10.0), 10_001))
    assert arrivals_s[:3] == [0.0, 0.1, 0.2]
    assert arrivals_s[-1] == 1000.0


def test_a_trace_at_double_speed_takes_half_the_time_and_starts_at_once() -> None:
    assert list(scaled_arrivals([10.0, 11.0, 15.0], 2.0)) == [0.0, 0.5, 2.5]


@pytest.mark.parametrize("rate_rps", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_above_zero_is_refused(rate_rps: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        next(poisson_arrivals(rate_rps, random.Random(0)))
    with pytest.raises(ValueError, match="must be above 0"):
        next(constant_arrivals(rate_rps))
    with pytest.raises(ValueError, match="must be above 0"):
        next(scaled_arrivals([0.0], rate_rps))
