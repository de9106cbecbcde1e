"""How requests were placed so far: on two workers, or on one and why; and which pools get none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pdray.core.placement import Together

DISAGGREGATED = "disaggregated"
_IDLE_PLACEMENTS = 50
_IDLE_S = 30.0


class PlacedCounts:
    """A pool that had no part in many requests one after the other, over some time, is idle: it
    costs what the others cost, and nobody would notice."""

    def __init__(self) -> None:
        hows = (DISAGGREGATED, *(each.value for each in Together))
        self.by_how: Counter[str] = Counter(dict.fromkeys(hows, 0))
        self._num_placed = 0
        self._last_parts: dict[str, tuple[int, float]] = {}

    def placed(self, together: Together | None, pools: Iterable[str], now: float) -> None:
        self.by_how[DISAGGREGATED if together is None else together.value] += 1
        self._num_placed += 1
        for pool in pools:
            self._last_parts[pool] = (self._num_placed, now)

    def idle(self, pools: Iterable[str], now: float) -> list[str]:
        """Those of ``pools`` that are idle; one seen for the first time has its time from now."""
        found = []
        for pool in dict.fromkeys(pools):
            number, at = self._last_parts.setdefault(pool, (self._num_placed, now))
            if self._num_placed - number >= _IDLE_PLACEMENTS and now - at >= _IDLE_S:
                found.append(pool)
        return found
