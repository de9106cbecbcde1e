"""A sum of what came of late."""

from __future__ import annotations

import math


class DecayingSum:
    """What came ``memory_s`` ago counts for a third of itself. ``now`` never goes back."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._sum = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._sum = self.at(now) + amount

    def at(self, now: float) -> float:
        self._sum *= math.exp((self._at - now) / self._memory_s)
        self._at = now
        return self._sum
