"""Counters that somebody else counts."""

from __future__ import annotations

from prometheus_client import Counter


class Total:
    """A counter of what somebody else counts."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._total = 0

    def set(self, total: int) -> None:
        self._counter.inc(total - self._total)
        self._total = total
