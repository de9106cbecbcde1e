"""Days made of a trace: as many as the curve says, with the trace's lengths and lumps."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from pdray.workload.day import Burst, Day, day_of, two_bursts
from pdray.workload.request import WorkloadRequest


def lumpy_trace(num_lumps: int = 200) -> list[WorkloadRequest]:
    """Five requests at once every ten seconds, their prompts as long as their place in the lump."""
    return [
        WorkloadRequest(
            arrival_s=10.0 * lump,
            prompt_tokens=100 + place,
            output_tokens=lump + 1,
            prefix_ids=(1,),
        )
        for lump in range(num_lumps)
        for place in range(5)
    ]


def test_a_day_has_as_many_requests_as_its_curve_says_hour_by_hour() -> None:
    day = Day(mean_rps=0.5, swing=0.5, peak_s=43200.0)
    requests = list(day_of(lumpy_trace(), day, random.Random(0)))
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] >= 0.0
    assert arrivals[-1] < day.duration_s
    for hour in range(24):
        expected = sum(day.rate_rps(3600 * hour + 60 * minute) * 60 for minute in range(60))
        found = sum(3600 * hour <= at < 3600 * (hour + 1) for at in arrivals)
        assert found == pytest.approx(expected, rel=0.15), hour


def test_lumps_and_lengths_are_the_traces() -> None:
    trace = lumpy_trace()
    requests = list(day_of(trace, Day(mean_rps=0.5, duration_s=20_000.0), random.Random(1)))
    assert {request.prompt_tokens for request in requests} == {100, 101, 102, 103, 104}
    mean = statistics.mean(request.output_tokens for request in requests)
    assert mean == pytest.approx(statistics.mean(each.output_tokens for each in trace), rel=0.1)
    gaps = [after.arrival_s - before.arrival_s for before, after in pairwise(requests)]
    at_once = sum(gap_s < 1e-9 for gap_s in gaps)
    assert at_once / len(gaps) == pytest.approx(0.8, abs=0.02)
    assert not any(request.prefix_ids for request in requests)


def test_a_burst_multiplies_what_comes_while_it_lasts() -> None:
    burst = Burst(begins_s=7200.0, duration_s=3600.0, factor=3.0)
    day = Day(mean_rps=0.5, swing=0.0, bursts=(burst,), duration_s=14_400.0)
    requests = list(day_of(lumpy_trace(), day, random.Random(2)))
    counts = [
        sum(3600 * hour <= request.arrival_s < 3600 * (hour + 1) for request in requests)
        for hour in range(4)
    ]
    for hour, expected in enumerate([1800, 1800, 5400, 1800]):
        assert counts[hour] == pytest.approx(expected, rel=0.1)


def test_the_same_seed_makes_the_same_day() -> None:
    def once(seed: int) -> list[WorkloadRequest]:
        rng = random.Random(seed)
        day = Day(mean_rps=0.2, bursts=two_bursts(rng))
        return list(day_of(lumpy_trace(), day, rng))

    assert once(3) == once(3)
    assert once(3) != once(4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean_rps": 0.0}, "mean_rps is 0.0"),
        ({"mean_rps": 1.0, "swing": 1.0}, "swing is 1.0"),
        ({"mean_rps": 1.0, "duration_s": 0.0}, "duration_s is 0.0"),
    ],
)
def test_a_day_that_cannot_be_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Day(**fields)


def test_a_trace_without_gaps_is_refused() -> None:
    request = WorkloadRequest(arrival_s=0.0, prompt_tokens=1, output_tokens=1)
    with pytest.raises(ValueError, match="has no gaps"):
        next(day_of([request, request], Day(mean_rps=1.0), random.Random(0)))
