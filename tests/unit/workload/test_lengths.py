from __future__ import annotations

import random
from itertools import islice

import pytest

from pdray.workload.lengths import (
    fixed_lengths,
    lognormal_lengths,
    scaled_length,
    uniform_lengths,
)


def test_fixed_lengths_are_all_the_same() -> None:
    assert list(islice(fixed_lengths(64), 3)) == [64, 64, 64]


def test_uniform_lengths_reach_both_ends_and_nothing_beyond() -> None:
    lengths = list(islice(uniform_lengths(3, 6, random.Random(0)), 500))
    assert set(lengths) == {3, 4, 5, 6}


def test_lognormal_lengths_have_the_median_and_stay_within_the_caps() -> None:
    lengths = sorted(islice(lognormal_lengths(200, 1.0, 10, 1000, random.Random(3)), 5001))
    assert lengths[2500] == pytest.approx(200, rel=0.1)
    assert (lengths[0], lengths[-1]) == (10, 1000)


def test_a_huge_deviation_ends_at_the_caps() -> None:
    lengths = list(islice(lognormal_lengths(200, 1e6, 10, 1000, random.Random(3)), 50))
    assert set(lengths) == {10, 1000}


@pytest.mark.parametrize(("factor", "expected"), [(0.5, 50), (0.001, 4), (100.0, 512)])
def test_a_scaled_length_is_drawn_into_its_caps(factor: float, expected: int) -> None:
    assert scaled_length(100, factor, 4, 512) == expected


def test_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        next(fixed_lengths(0))
    with pytest.raises(ValueError, match="in order"):
        next(uniform_lengths(5, 4, random.Random(0)))
    with pytest.raises(ValueError, match="sigma"):
        next(lognormal_lengths(100, -1.0, 1, 10, random.Random(0)))
