"""All pools within one budget, against every way to divide it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pdray.policy.scaling.base import Budget
from pdray.policy.scaling.budget import PoolWish, fit_budget


def wish(
    desired: int,
    *,
    demand: float | None = None,
    min_workers: int = 1,
    num_gpus: float = 1.0,
    cost: float = 0.0,
    num_spent: int = 0,
) -> PoolWish:
    return PoolWish(
        desired=desired,
        min_workers=min_workers,
        demand=float(desired) if demand is None else demand,
        num_gpus=num_gpus,
        cost_per_hour=cost,
        num_spent=num_spent,
    )


def test_without_a_limit_every_wish_is_granted() -> None:
    assert fit_budget({"p": wish(3), "d": wish(9)}, Budget()) == {"p": 3, "d": 9}


def test_where_it_binds_the_ratio_is_that_of_the_demands() -> None:
    wishes = {"p": wish(6), "d": wish(12)}
    assert fit_budget(wishes, Budget(max_gpus=9)) == {"p": 3, "d": 6}


def test_what_drains_is_still_paid_for() -> None:
    wishes = {"p": wish(4, num_spent=2), "d": wish(4)}
    assert sum(fit_budget(wishes, Budget(max_gpus=6)).values()) == 4


def test_money_counts_by_the_pool() -> None:
    wishes = {"p": wish(4, cost=3.0), "d": wish(4, cost=1.0)}
    assert fit_budget(wishes, Budget(max_cost_per_hour=8.0)) == {"p": 2, "d": 2}


def test_minima_are_given_whatever_they_cost() -> None:
    wishes = {"p": wish(4, min_workers=3), "d": wish(4, min_workers=2)}
    assert fit_budget(wishes, Budget(max_gpus=1)) == {"p": 3, "d": 2}


@given(
    p=st.tuples(st.integers(1, 6), st.floats(0.1, 8.0), st.sampled_from([0.5, 1.0, 2.0])),
    d=st.tuples(st.integers(1, 6), st.floats(0.1, 8.0), st.sampled_from([0.5, 1.0, 2.0])),
    max_gpus=st.integers(2, 14),
)
def test_no_other_division_serves_the_pool_that_has_least_better(
    p: tuple[int, float, float], d: tuple[int, float, float], max_gpus: int
) -> None:
    wishes = {
        "p": wish(p[0], demand=p[1], num_gpus=p[2]),
        "d": wish(d[0], demand=d[1], num_gpus=d[2]),
    }

    def worst(num_p: int, num_d: int) -> float:
        return min(num_p / p[1], num_d / d[1])

    def gpus(num_p: int, num_d: int) -> float:
        return num_p * p[2] + num_d * d[2]

    found = fit_budget(wishes, Budget(max_gpus=max_gpus))
    every = itertools.product(range(1, p[0] + 1), range(1, d[0] + 1))
    possible = [each for each in every if gpus(*each) <= max_gpus]
    if possible:
        assert gpus(found["p"], found["d"]) <= max_gpus
        assert worst(found["p"], found["d"]) == max(worst(*each) for each in possible)
