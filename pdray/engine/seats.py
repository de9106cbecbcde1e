"""Who may join the batch beside those who decode in it."""

from __future__ import annotations

from collections.abc import Callable

from pdray.core.step_time import StepWork
from pdray.engine.step_budget import StepBudget


class Seats:
    """As many as keep to the ITL target. Where somebody waits longer than ``max_wait_s`` for such a
    seat, he gets one that does not keep to it, and the next one as long after him: a fleet that is
    too small is slow for all, and silent for nobody."""

    def __init__(
        self, budget: StepBudget, *, max_wait_s: float, clock: Callable[[], float]
    ) -> None:
        self._budget = budget
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._full_since: float | None = None

    def has_room(self, num_taken: int, decodes: StepWork) -> bool:
        """For one who waits, beside ``num_taken`` of whom ``decodes`` are known to decode."""
        if num_taken >= self._budget.max_batch_size:
            return False
        if num_taken < self._budget.num_seats(decodes):
            return True
        now = self._clock()
        if self._full_since is None:
            self._full_since = now
        return now - self._full_since >= self._max_wait_s

    def take(self) -> None:
        self._full_since = None
