"""Which attempts of which requests a worker may work on: older and cancelled ones are dead."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.clock import Clock

AttemptKey = tuple[str, int]

TOMBSTONE_S = 60.0
"""Longer than any submit or offer can be under way."""


@dataclass(slots=True)
class _Live:
    attempt: int
    frontend_id: str


@dataclass(slots=True)
class _Tombstone:
    attempt: int
    expires_at: float


class AttemptTable:
    """Live attempts with the frontend that owns each, and tombstones of cancelled ones.

    A cancel may overtake its submit (they may come over different links): the tombstone makes
    it win all the same.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._tombstones: dict[str, _Tombstone] = {}

    def __len__(self) -> int:
        return len(self._live)

    def begin(self, request_id: str, attempt: int, frontend_id: str) -> bool:
        """Takes the attempt on; False where it is dead, or older than one that is known."""
        tombstone = self._tombstones.get(request_id)
        if tombstone is not None and attempt <= tombstone.attempt:
            return False
        live = self._live.get(request_id)
        if live is not None and attempt <= live.attempt:
            return False
        self._live[request_id] = _Live(attempt, frontend_id)
        return True

    def is_live(self, request_id: str, attempt: int) -> bool:
        live = self._live.get(request_id)
        return live is not None and live.attempt == attempt

    def frontend_of(self, request_id: str) -> str:
        return self._live[request_id].frontend_id

    def end(self, request_id: str, attempt: int) -> None:
        """The attempt is over here; ending twice does no harm."""
        if self.is_live(request_id, attempt):
            del self._live[request_id]

    def cancel(self, request_id: str, attempt: int) -> int | None:
        """Ends the attempt and all older ones, also those not heard of yet. Returns the one that
        was live here and is not any more."""
        ended: int | None = None
        live = self._live.get(request_id)
        if live is not None and live.attempt <= attempt:
            ended = live.attempt
            del self._live[request_id]
        now = self._clock.now()
        # Re-inserting keeps the dict ordered by expiry, so the sweep stops at the first young one.
        self._tombstones.pop(request_id, None)
        self._tombstones[request_id] = _Tombstone(attempt, now + TOMBSTONE_S)
        self._sweep(now)
        return ended

    def of_frontend(self, frontend_id: str) -> list[AttemptKey]:
        return [
            (request_id, live.attempt)
            for request_id, live in self._live.items()
            if live.frontend_id == frontend_id
        ]

    def _sweep(self, now: float) -> None:
        while self._tombstones:
            request_id = next(iter(self._tombstones))
            if self._tombstones[request_id].expires_at > now:
                return
            del self._tombstones[request_id]
