"""How long a worker took to start, by what it was doing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from pdray.core.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupTimes:
    """``process_s``: from when its process was asked for until it ran, with the wait for room.
    ``imports_s``: loading code, while the model is read. ``weights_s``: from there to the last
    weight in place. ``warmup_s``: KV memory, kernels, links. ``meeting_s``: meeting its peers."""

    process_s: float
    imports_s: float
    weights_s: float
    warmup_s: float
    meeting_s: float = 0.0

    @property
    def total_s(self) -> float:
        return sum(seconds for _, seconds in self.parts())

    def parts(self) -> Iterator[tuple[str, float]]:
        """Each with its name, in the order in which they pass."""
        for field in fields(self):
            yield field.name.removesuffix("_s"), getattr(self, field.name)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts())
        return f"{self.total_s:.1f} s ({parts})"


class StartupWatch:
    """Told in the worker's process which part of its start has just ended."""

    def __init__(self, clock: Clock, process_s: float) -> None:
        self._clock = clock
        self._process_s = process_s
        self._imports_s = self._weights_s = self._warmup_s = 0.0
        self._since = clock.now()

    def imported(self) -> None:
        self._imports_s = self._lap()

    def loaded(self) -> None:
        self._weights_s = self._lap()

    def warmed_up(self) -> None:
        self._warmup_s = self._lap()

    def times(self) -> StartupTimes:
        return StartupTimes(
            process_s=self._process_s,
            imports_s=self._imports_s,
            weights_s=self._weights_s,
            warmup_s=self._warmup_s,
        )

    def _lap(self) -> float:
        began_at, self._since = self._since, self._clock.now()
        return self._since - began_at
