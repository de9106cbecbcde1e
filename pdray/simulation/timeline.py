"""What happens when: a heap of events, and the clock that jumps from one to the next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]


@dataclass(slots=True, eq=False)
class Timer:
    """An event to come; one that was cancelled does not."""

    at: float
    action: Action | None

    def cancel(self) -> None:
        self.action = None


class Timeline:
    """``now`` is in seconds from the start. Of events at one time, the first set comes first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def at(self, when: float, action: Action) -> Timer:
        assert when >= self.now, f"time does not go back: {when} is before {self.now}"
        timer = Timer(when, action)
        heapq.heappush(self._heap, (when, next(self._numbers), timer))
        return timer

    def after(self, seconds: float, action: Action) -> Timer:
        return self.at(self.now + seconds, action)

    def step(self) -> bool:
        """The next event; False where there is none."""
        while self._heap:
            at, _, timer = heapq.heappop(self._heap)
            if timer.action is not None:
                self.now = at
                timer.action()
                return True
        return False
