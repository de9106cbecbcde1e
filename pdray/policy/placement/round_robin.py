"""Every worker in its turn, whatever its load: the baseline for other policies."""

from __future__ import annotations

from collections.abc import Sequence

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView

from .base import MAX_DECODE_CANDIDATES, PlacementChoice, pairings


class RoundRobin:
    """Remembers when each worker last had its turn; a worker that never had one is first."""

    def __init__(self) -> None:
        self._num_turns = 0
        self._prefill_turns: dict[WorkerId, int] = {}
        self._decode_turns: dict[WorkerId, int] = {}

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        pairs = pairings(view, ask)
        if not pairs:
            return None
        self._num_turns += 1
        by_prefill = {pair.prefill.info.worker_id: pair for pair in pairs}
        prefill_id = _by_turn(self._prefill_turns, list(by_prefill))[0]
        decodes = by_prefill[prefill_id].decodes
        decode_ids = _by_turn(self._decode_turns, [d.info.worker_id for d in decodes])
        self._prefill_turns[prefill_id] = self._num_turns
        self._decode_turns[decode_ids[0]] = self._num_turns
        return PlacementChoice(
            prefill_id=prefill_id, decode_ids=tuple(decode_ids[:MAX_DECODE_CANDIDATES])
        )


def _by_turn(turns: dict[WorkerId, int], worker_ids: Sequence[WorkerId]) -> list[WorkerId]:
    return sorted(worker_ids, key=lambda worker_id: turns.get(worker_id, 0))
