"""Whether a worker hangs: told from the heartbeats that do not come."""

from __future__ import annotations

_LONGEST_STEP_S = 1.0


class Silence:
    """For how long nothing has been heard, by somebody who looks several times a second.

    Only time in which we ourselves ran counts: a process that was stopped, or too busy to
    listen, must not take all its workers for dead.
    """

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._silent_s = 0.0

    def end(self, now: float) -> None:
        """Something was heard."""
        self._looked_at = now
        self._silent_s = 0.0

    def look(self, now: float) -> float:
        """The silence so far, in seconds."""
        self._silent_s += min(now - self._looked_at, _LONGEST_STEP_S)
        self._looked_at = now
        return self._silent_s
