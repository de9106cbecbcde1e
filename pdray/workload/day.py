"""Days that a trace of an hour only hints at: its lengths and its lumps, under a daily curve.

The trace is cut into runs of requests, which are put one behind the other in an order drawn by
chance, gaps and all. That is a clock of its own, on which requests come once a second on average;
the curve then says how fast that clock goes at every time of the day.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pdray.workload.request import WorkloadRequest

DAY_S = 86400.0
RUN_REQUESTS = 100
"""Neighbours that stay together: as far as lumps reach."""
_STEP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """For ``duration_s`` from ``begins_s`` on, ``factor`` times as many come as would."""

    begins_s: float
    duration_s: float
    factor: float

    def __post_init__(self) -> None:
        if not (self.begins_s >= 0 and self.duration_s > 0 and self.factor > 0):
            raise ValueError(f"{self}: a burst begins at 0 or later, and lasts; its factor is > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A sine of ``mean_rps`` times 1 - ``swing`` to 1 + ``swing``, highest at ``peak_s``, with
    bursts on top. Raises ValueError for what cannot be."""

    mean_rps: float
    swing: float = 0.6
    peak_s: float = 14 * 3600.0
    bursts: tuple[Burst, ...] = ()
    duration_s: float = DAY_S

    def __post_init__(self) -> None:
        if not self.mean_rps > 0:
            raise ValueError(f"mean_rps is {self.mean_rps}; it must be above 0")
        if not 0 <= self.swing < 1:
            raise ValueError(f"swing is {self.swing}; it must be at least 0, and below 1")
        if not self.duration_s > 0:
            raise ValueError(f"duration_s is {self.duration_s}; it must be above 0")

    def rate_rps(self, at_s: float) -> float:
        angle = 2 * math.pi * (at_s - self.peak_s) / DAY_S
        rate_rps = self.mean_rps * (1 + self.swing * math.cos(angle))
        for burst in self.bursts:
            if 0 <= at_s - burst.begins_s < burst.duration_s:
                rate_rps *= burst.factor
        return rate_rps


def two_bursts(rng: random.Random) -> tuple[Burst, Burst]:
    """A short and steep one in the morning, a longer one in the evening, at times drawn by
    chance."""
    morning = Burst(begins_s=rng.uniform(8, 11) * 3600, duration_s=600.0, factor=3.0)
    evening = Burst(begins_s=rng.uniform(17, 21) * 3600, duration_s=1800.0, factor=2.0)
    return morning, evening


def day_of(
    trace: Sequence[WorkloadRequest], day: Day, rng: random.Random
) -> Iterator[WorkloadRequest]:
    """Requests in order of arrival. They share no prefixes: a trace's own would come far too
    often. Raises ValueError for a trace of fewer than two requests, or of no duration."""
    gaps = _gaps_of(trace)
    ticks = _ticks(day)
    begins_s, begins_at, rate_rps = next(ticks)
    came_at = 0.0
    while True:
        start = rng.randrange(len(gaps))
        for index in range(start, start + RUN_REQUESTS):
            came_at += gaps[index % len(gaps)]
            while came_at >= begins_at + rate_rps * _STEP_S:
                tick = next(ticks, None)
                if tick is None:
                    return
                begins_s, begins_at, rate_rps = tick
            arrival_s = begins_s + (came_at - begins_at) / rate_rps
            if arrival_s >= day.duration_s:
                return
            request = trace[index % len(gaps) + 1]
            yield replace(request, arrival_s=arrival_s, prefix_ids=())


def _gaps_of(trace: Sequence[WorkloadRequest]) -> list[float]:
    """Before each request but the first; 1 on average."""
    arrivals_s = [request.arrival_s for request in trace]
    if len(arrivals_s) < 2 or not arrivals_s[-1] > arrivals_s[0]:
        raise ValueError(f"a trace of {len(arrivals_s)} requests at one time has no gaps")
    mean_s = (arrivals_s[-1] - arrivals_s[0]) / (len(arrivals_s) - 1)
    return [(after - before) / mean_s for before, after in pairwise(arrivals_s)]


def _ticks(day: Day) -> Iterator[tuple[float, float, float]]:
    """Of every minute: when it begins, how far the requests' clock is then, and how fast it goes
    in it."""
    begins_at = 0.0
    for number in range(math.ceil(day.duration_s / _STEP_S)):
        begins_s = number * _STEP_S
        rate_rps = day.rate_rps(begins_s)
        yield begins_s, begins_at, rate_rps
        begins_at += rate_rps * _STEP_S
