"""What a link costs, by its reads."""

from __future__ import annotations

import random

import pytest

from pdray.core.link_cost import LinkCost, LinkFit

LATENCY_S = 0.0004
BYTES_PER_S = 2.0e9


def read_s(num_bytes: int, *, slower: float = 1.0) -> float:
    return slower * (LATENCY_S + num_bytes / BYTES_PER_S)


def fit_of(reads: list[tuple[int, float]]) -> LinkCost:
    fit = LinkFit("here")
    for num_bytes, seconds in reads:
        fit.add(num_bytes, seconds)
    cost = fit.cost()
    assert cost is not None
    return cost


def sizes(num: int, seed: int = 0) -> list[int]:
    return [random.Random(seed + i).randrange(10_000, 20_000_000) for i in range(num)]


def test_nothing_is_known_before_the_first_read_nor_of_reads_of_nothing() -> None:
    fit = LinkFit("here")
    fit.add(0, 0.1)
    assert fit.cost() is None


def test_latency_and_rate_are_told_apart() -> None:
    cost = fit_of([(size, read_s(size)) for size in sizes(20)])
    assert cost.latency_s == pytest.approx(LATENCY_S)
    assert cost.bytes_per_s == pytest.approx(BYTES_PER_S)
    assert (cost.source, cost.num_reads) == ("here", 20)


def test_reads_of_one_size_are_foretold_at_that_size() -> None:
    cost = fit_of([(1_000_000, 0.01)] * 5)
    assert cost.read_s(1_000_000) == pytest.approx(0.01)
    assert cost.latency_s == 0.0


def test_noise_makes_neither_negative() -> None:
    for seed in range(50):
        draw = random.Random(seed)
        cost = fit_of([(size, draw.uniform(0.001, 0.02)) for size in sizes(12, seed)])
        assert cost.latency_s >= 0.0
        assert cost.bytes_per_s > 0.0


def test_one_stall_hardly_moves_it() -> None:
    reads = [(size, read_s(size)) for size in sizes(60)]
    cost = fit_of([*reads[:30], (1_000_000, 5.0), *reads[30:]])
    assert cost.read_s(10_000_000) == pytest.approx(read_s(10_000_000), rel=0.25)


def test_a_link_that_has_become_slower_is_found_out() -> None:
    reads = [(size, read_s(size)) for size in sizes(100)]
    slow = [(size, read_s(size, slower=20.0)) for size in sizes(100, seed=1)]
    cost = fit_of([*reads, *slow])
    assert cost.read_s(10_000_000) == pytest.approx(read_s(10_000_000, slower=20.0), rel=0.3)
