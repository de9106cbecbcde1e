"""Every worker in its turn, whatever its load: the baseline for other policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView

from .base import MAX_DECODE_CANDIDATES, PlacementChoice, pairings

Id = TypeVar("Id", bound=WorkerId | None)


class RoundRobin:
    """Remembers when each worker last had its turn; a worker that never had one is first."""

    def __init__(self) -> None:
        self._num_turns = 0
        self._prefill_turns: dict[WorkerId | None, int] = {}
        self._decode_turns: dict[WorkerId, int] = {}

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        pairs = pairings(view, ask)
        if not pairs:
            return None
        self._num_turns += 1
        by_prefill = {pair.prefill_id: pair for pair in pairs}
        prefill_id = self._next(self._prefill_turns, list(by_prefill))[0]
        decode_ids = [decode.info.worker_id for decode in by_prefill[prefill_id].decodes]
        decode_ids = self._next(self._decode_turns, decode_ids)[:MAX_DECODE_CANDIDATES]
        return PlacementChoice(
            prefill_id=prefill_id,
            decode_ids=tuple(decode_ids),
            together=by_prefill[prefill_id].together,
        )

    def _next(self, turns: dict[Id, int], ids: Sequence[Id]) -> list[Id]:
        """All of them, the first of which has its turn."""
        by_turn = sorted(ids, key=lambda each: turns.get(each, 0))
        if by_turn:
            turns[by_turn[0]] = self._num_turns
        return by_turn
