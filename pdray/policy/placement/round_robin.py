"""Every worker in its turn, whatever its load: the baseline for other policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView

from .base import MAX_DECODE_CANDIDATES, Candidate, Pairing, PlacementChoice, pairings

Id = TypeVar("Id", bound=WorkerId | None)


class RoundRobin:
    """Remembers when each worker last had its turn; a worker that never had one is first."""

    def __init__(self) -> None:
        self._num_turns = 0
        self._prefill_turns: dict[WorkerId | None, int] = {}
        self._decode_turns: dict[WorkerId, int] = {}

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        candidates = self.explain(view, ask)
        if not candidates:
            return None
        choice = candidates[0].choice
        self._num_turns += 1
        self._prefill_turns[choice.prefill_id] = self._num_turns
        if choice.decode_ids:
            self._decode_turns[choice.decode_ids[0]] = self._num_turns
        return choice

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        by_prefill = {pair.prefill_id: pair for pair in pairings(view, ask)}
        turns = self._prefill_turns
        return tuple(
            self._candidate(by_prefill[prefill_id], turns.get(prefill_id, 0))
            for prefill_id in _by_turn(turns, list(by_prefill))
        )

    def _candidate(self, pair: Pairing, turn: int) -> Candidate:
        decode_ids = [decode.info.worker_id for decode in pair.decodes]
        return Candidate(
            prefill_id=pair.prefill_id,
            decode_ids=tuple(_by_turn(self._decode_turns, decode_ids)[:MAX_DECODE_CANDIDATES]),
            together=pair.together,
            cost=turn,
        )


def _by_turn(turns: dict[Id, int], ids: Sequence[Id]) -> list[Id]:
    """The one whose turn it is first."""
    return sorted(ids, key=lambda each: turns.get(each, 0))
