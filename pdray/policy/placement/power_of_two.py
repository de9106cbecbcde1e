"""Two workers of each role at random, and the less loaded of each two.

Nearly as good as looking at all of them (Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", 2001), and with old numbers better: many placements at once do not all go to the one
that was the least loaded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from pdray.core.placement import PlacementAsk
from pdray.core.snapshot import FleetView, WorkerView

from .base import MAX_DECODE_CANDIDATES, Candidate, Pairing, PlacementChoice, pairings

T = TypeVar("T")


class PowerOfTwo:
    """All choice is ``rng``'s: equal ones make equal choices."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        candidates = _candidates(view, ask, self._rng)
        return candidates[0].choice if candidates else None

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        rng = random.Random()
        rng.setstate(self._rng.getstate())
        return _candidates(view, ask, rng)


def _candidates(view: FleetView, ask: PlacementAsk, rng: random.Random) -> tuple[Candidate, ...]:
    drawn = _two(pairings(view, ask), rng)
    ranked = [(pair, _ranked(pair.decodes, rng)) for pair in drawn]
    ranked.sort(key=lambda each: (_backlog_tokens(each[0]), [d.fullness for d in each[1][:1]]))
    return tuple(
        Candidate(
            prefill_id=pair.prefill_id,
            decode_ids=tuple(worker.info.worker_id for worker in decodes),
            together=pair.together,
            cost=_backlog_tokens(pair),
        )
        for pair, decodes in ranked
    )


def _ranked(decodes: Sequence[WorkerView], rng: random.Random) -> list[WorkerView]:
    """The better of two, the other, and more at random where both refuse."""
    drawn = rng.sample(decodes, min(len(decodes), MAX_DECODE_CANDIDATES))
    return sorted(drawn[:2], key=lambda worker: worker.fullness) + drawn[2:]


def _two(items: Sequence[T], rng: random.Random) -> list[T]:
    return rng.sample(items, min(len(items), 2))


def _backlog_tokens(pair: Pairing) -> int:
    return 0 if pair.prefill is None else pair.prefill.prefill_backlog_tokens
