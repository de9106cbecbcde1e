"""Time as an argument: seconds that only go forward."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class EpochClock:
    """Seconds since 1970, which mean the same to another process; they go back where somebody
    sets the machine's clock back."""

    def now(self) -> float:
        return time.time()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves when told to: for tests and the simulator."""

    now_s: float = 0.0

    def now(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, f"time does not go back: {seconds}"
        self.now_s += seconds
