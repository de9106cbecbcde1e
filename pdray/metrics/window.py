"""What happened lately: counts by slots of time, and percentiles out of them."""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pdray.core.overview import Percentiles

K = TypeVar("K")

_RATIO = 1.05
"""From one bucket of seconds to the next: what is read out of one is wrong by half of that at
most."""
_LOG_RATIO = math.log(_RATIO)
_SHORTEST_S = 1e-4


class SlotCounts(Generic[K]):
    """Counts by key in the last ``num_slots`` slots of ``slot_s`` each. Time never goes back."""

    def __init__(self, slot_s: float, num_slots: int) -> None:
        self.slot_s = slot_s
        self._num_slots = num_slots
        self._slots: deque[tuple[int, Counter[K]]] = deque()

    def add(self, now: float, counts: Mapping[K, int]) -> None:
        if not counts:
            return
        number = self._number(now)
        if not self._slots or self._slots[-1][0] != number:
            self._forget(number)
            self._slots.append((number, Counter()))
        self._slots[-1][1].update(counts)

    def total(self, now: float, num_slots: int) -> Counter[K]:
        """Of the last slots, the one that is not over yet among them."""
        number = self._number(now)
        found: Counter[K] = Counter()
        for each, counts in self._slots:
            if each > number - num_slots:
                found.update(counts)
        return found

    def series(self, now: float) -> list[Counter[K]]:
        """Slot by slot, the oldest first, without the one that is not over yet."""
        number = self._number(now)
        by_number = dict(self._slots)
        return [by_number.get(each, Counter()) for each in range(number - self._num_slots, number)]

    def _number(self, now: float) -> int:
        return math.floor(now / self.slot_s)

    def _forget(self, number: int) -> None:
        while self._slots and self._slots[0][0] < number - self._num_slots:
            self._slots.popleft()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCounts:
    """Of what a frontend saw since it told the last ones: how often, by bucket of seconds."""

    ttft: Mapping[int, int]
    itl: Mapping[int, int]


class RecentLatencies:
    """One frontend's, until they are taken."""

    def __init__(self) -> None:
        self._ttft: Counter[int] = Counter()
        self._itl: Counter[int] = Counter()

    def first_token(self, seconds: float) -> None:
        self._ttft[bucket_of(seconds)] += 1

    def interval(self, seconds: float, n: int = 1) -> None:
        self._itl[bucket_of(seconds)] += n

    def take(self) -> LatencyCounts:
        taken = LatencyCounts(ttft=self._ttft, itl=self._itl)
        self._ttft, self._itl = Counter(), Counter()
        return taken


def bucket_of(seconds: float) -> int:
    """Bucket 0 has all up to 0.1 ms."""
    if seconds <= _SHORTEST_S:
        return 0
    return math.ceil(math.log(seconds / _SHORTEST_S) / _LOG_RATIO)


def seconds_of(bucket: int) -> float:
    """The middle of a bucket, none for what took no time at all."""
    return 0.0 if bucket == 0 else _SHORTEST_S * _RATIO ** (bucket - 0.5)


def percentiles_of(buckets: Mapping[int, int]) -> Percentiles | None:
    """None of nothing."""
    ordered = sorted((bucket, count) for bucket, count in buckets.items() if count > 0)
    total = sum(count for _, count in ordered)
    if total == 0:
        return None

    def at(fraction: float) -> float:
        rank = math.ceil(fraction * total)
        sums = itertools.accumulate(count for _, count in ordered)
        return next(
            seconds_of(bucket)
            for (bucket, _), num in zip(ordered, sums, strict=True)
            if num >= rank
        )

    return Percentiles(count=total, p50_s=at(0.5), p90_s=at(0.9), p99_s=at(0.99), max_s=at(1.0))
