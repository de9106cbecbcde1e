"""How many requests a second come, of late."""

from __future__ import annotations

import math

_LATELY_S = 30.0


class ArrivalRate:
    """A count that decays: what came ``_LATELY_S`` ago counts for a third."""

    def __init__(self) -> None:
        self._per_s = 0.0
        self._at: float | None = None

    def arrived(self, num_requests: int, now: float) -> None:
        self._per_s = self.per_s(now) + num_requests / _LATELY_S
        self._at = now

    def per_s(self, now: float) -> float:
        return 0.0 if self._at is None else self._per_s * math.exp((self._at - now) / _LATELY_S)
