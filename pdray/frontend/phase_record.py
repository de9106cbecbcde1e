"""When a request's phases began, as far as that is known: what its timeline is made of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from pdray.core.request import PhaseAges, TokenChunk, WorkerId
from pdray.core.timeline import Phase, PhaseName, Timeline

Start = tuple[PhaseName, float, WorkerId | None]


@dataclass(frozen=True, slots=True)
class _First:
    """A worker's first token: when it came, and what was said with it."""

    worker_id: WorkerId
    at: float
    ages: PhaseAges

    @property
    def began_at(self) -> float:
        return self.at - self.ages.began_s

    @property
    def ready_at(self) -> float:
        assert self.ages.ready_s is not None, f"{self.worker_id} has pulled nothing"
        return self.at - self.ages.ready_s


@dataclass(slots=True)
class PhaseRecord:
    """All on one clock. What messages take on their way counts to the phase that waits for them:
    PREFILL_WAIT, and TRANSFER or, where it has none, DECODE.

    A prompt that another application has computed has no prefill here. Of an attempt that was lost
    the phases up to then stay, the last one until the next attempt's begin.
    """

    arrived_at: float
    placed_at: float | None = None
    _of_lost: list[Start] = field(default_factory=list)
    _lost_at: float | None = None
    _prefill: _First | None = None
    _decode: _First | None = None
    _moves: list[tuple[float, WorkerId]] = field(default_factory=list)
    _newest_index: int = -1
    _newest_by: WorkerId | None = None

    def tokens_came(self, worker_id: WorkerId, chunk: TokenChunk, now: float) -> None:
        """Tokens of a worker, in whatever order two workers' come."""
        ages = chunk.ages
        if ages is not None:
            first = _First(worker_id, now, ages)
            if ages.ready_s is None:
                self._prefill = first
            else:
                self._decode = first
        if chunk.index > self._newest_index:
            if ages is None and worker_id != self._newest_by:
                self._moves.append((now, worker_id))
            self._newest_index, self._newest_by = chunk.index, worker_id

    def lost(self, now: float, *, has_decoded: bool) -> None:
        """The attempt is over, and another one begins."""
        self._of_lost += self._starts(has_decoded)
        self._lost_at = now
        self.placed_at = self._prefill = self._decode = self._newest_by = None
        self._moves, self._newest_index = [], -1

    def timeline(self, ended_at: float, *, has_decoded: bool) -> Timeline:
        """Up to the last token, which came at ``ended_at``."""
        starts = self._of_lost + self._starts(has_decoded)
        # Tokens of two workers may overtake each other; phases do not.
        times = list(itertools.accumulate((at for _, at, _ in starts), max))
        times = [min(at, ended_at) for at in times] + [ended_at]
        phases = tuple(
            Phase(name=name, start_s=at - self.arrived_at, duration_s=end - at, worker_id=worker_id)
            for (name, _, worker_id), (at, end) in zip(
                starts, itertools.pairwise(times), strict=True
            )
        )
        return Timeline(arrived_at=self.arrived_at, phases=phases)

    def _starts(self, has_decoded: bool) -> list[Start]:
        queued_at = self.arrived_at if self._lost_at is None else self._lost_at
        starts: list[Start] = [(PhaseName.QUEUED, queued_at, None)]
        if self.placed_at is None:
            return starts
        prefill, decode, prefilled_at = self._prefill, self._decode, self.placed_at
        if prefill is not None:
            prefilled_at = prefill.at
            starts += [
                (PhaseName.PREFILL_WAIT, self.placed_at, prefill.worker_id),
                (PhaseName.PREFILL, prefill.began_at, prefill.worker_id),
            ]
        if decode is not None:
            starts += [
                (PhaseName.TRANSFER, prefilled_at, decode.worker_id),
                (PhaseName.DECODE_WAIT, decode.ready_at, decode.worker_id),
                (PhaseName.DECODE, decode.began_at, decode.worker_id),
            ]
        elif prefill is not None and has_decoded:
            starts.append((PhaseName.DECODE, prefilled_at, prefill.worker_id))
        starts += [(PhaseName.DECODE, at, worker_id) for at, worker_id in self._moves]
        return starts
