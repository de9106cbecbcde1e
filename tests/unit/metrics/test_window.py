"""Counts of late, and percentiles out of buckets."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.metrics.window import RecentLatencies, SlotCounts, bucket_of, percentiles_of, seconds_of

SECONDS = st.floats(1.01e-4, 3600.0)


@given(SECONDS)
def test_a_bucket_is_wrong_by_less_than_three_percent(seconds: float) -> None:
    assert seconds_of(bucket_of(seconds)) == pytest.approx(seconds, rel=0.03)


@given(SECONDS, SECONDS)
def test_buckets_are_in_the_order_of_time(one: float, other: float) -> None:
    assert (bucket_of(one) <= bucket_of(other)) or one > other


@given(st.lists(SECONDS, min_size=1, max_size=50))
def test_percentiles_are_those_of_the_sorted_list(seconds: list[float]) -> None:
    found = percentiles_of(Counter(map(bucket_of, seconds)))
    assert found is not None
    ordered = sorted(seconds)
    for fraction, value in ((0.5, found.p50_s), (0.9, found.p90_s), (0.99, found.p99_s)):
        rank = math.ceil(fraction * len(ordered)) - 1
        assert value == pytest.approx(ordered[rank], rel=0.03)
    assert found.max_s == pytest.approx(ordered[-1], rel=0.03)
    assert found.count == len(seconds)


def test_there_are_none_of_nothing() -> None:
    assert percentiles_of({}) is None
    assert percentiles_of({3: 0}) is None


def test_what_is_taken_is_told_once() -> None:
    recent = RecentLatencies()
    recent.first_token(0.5)
    recent.interval(0.01, 3)
    taken = recent.take()
    assert dict(taken.ttft) == {bucket_of(0.5): 1}
    assert dict(taken.itl) == {bucket_of(0.01): 3}
    assert not recent.take().ttft


@given(
    st.lists(st.tuples(st.floats(0, 3.0), st.sampled_from("ab"), st.integers(1, 5)), max_size=30),
    st.integers(1, 6),
)
def test_slots_have_what_was_added_in_their_time(
    steps: list[tuple[float, str, int]], num_slots: int
) -> None:
    counts: SlotCounts[str] = SlotCounts(1.0, 5)
    now, added = 0.0, []
    for wait_s, key, num in steps:
        now += wait_s
        counts.add(now, {key: num})
        added.append((math.floor(now), key, num))
    slot = math.floor(now)

    def total_of(slots: range) -> dict[str, int]:
        found: Counter[str] = Counter()
        for at, key, num in added:
            if at in slots:
                found[key] += num
        return dict(found)

    kept = min(num_slots, 5)
    assert dict(counts.total(now, kept)) == total_of(range(slot - kept + 1, slot + 1))
    series = [dict(each) for each in counts.series(now)]
    assert series == [total_of(range(each, each + 1)) for each in range(slot - 5, slot)]
