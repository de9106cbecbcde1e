from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.core.least_squares import solve_nonnegative

SIZE = 4
SCALES = np.array([1.0, 300.0, 1e5, 4.0])
STAY = [1e-9] * SIZE


@given(seed=st.integers(0, 2**31), zeros=st.sets(st.integers(0, SIZE - 1)))
def test_what_made_the_equations_is_found_whatever_its_units(seed: int, zeros: set[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.0, 1.0, (40, SIZE)) * SCALES
    truth = rng.uniform(0.1, 1.0, SIZE) / SCALES
    truth[list(zeros)] = 0.0
    found = solve_nonnegative(
        (rows.T @ rows).tolist(), list(rows.T @ rows @ truth), [0.0] * SIZE, STAY
    )
    assert np.array(found) * SCALES == pytest.approx(truth * SCALES, abs=1e-5)
    assert min(found) >= 0.0


@given(seed=st.integers(0, 2**31))
def test_no_part_is_negative_whatever_the_equations_ask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.uniform(0.0, 1.0, (10, SIZE)) * SCALES
    targets = rows.T @ rng.uniform(-1.0, 1.0, 10)
    assert (
        min(solve_nonnegative((rows.T @ rows).tolist(), list(targets), [0.5] * SIZE, STAY)) >= 0.0
    )


def test_a_part_of_no_equation_stays_and_counts() -> None:
    assert solve_nonnegative([[2.0, 1.0], [1.0, 0.0]], [10.0, 0.0], [0.0, 4.0], STAY) == [
        pytest.approx(3.0),
        4.0,
    ]


def test_parts_that_always_come_together_go_to_the_one_that_stays_less() -> None:
    """Of which one it is nothing is told."""
    together = [[1.0, 2.0], [2.0, 4.0]]
    first, second = solve_nonnegative(together, [8.0, 16.0], [0.0, 0.0], [1e-3, 1e-6])
    assert first == pytest.approx(0.0, abs=0.05)
    assert second == pytest.approx(4.0, abs=0.05)
