"""Where the fewest tokens are to be computed: those of the prompt that are not cached there, and
those of the prompts before it."""

from __future__ import annotations

from collections.abc import Mapping

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import FleetView, WorkerView

from .base import MAX_DECODE_CANDIDATES, Candidate, Pairing, PlacementChoice, pairings


class PrefixAware:
    """Decode workers that have some of the prompt come first, as less has to move; then the one
    with the most room."""

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        candidates = self.explain(view, ask)
        return candidates[0].choice if candidates else None

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        cached = view.cached_tokens(ask)
        candidates = [_candidate(pair, ask, cached) for pair in pairings(view, ask)]
        return tuple(sorted(candidates, key=lambda each: each.cost))


def _candidate(pair: Pairing, ask: PlacementAsk, cached: Mapping[WorkerId, int]) -> Candidate:
    def rank(worker: WorkerView) -> tuple[bool, int, float]:
        is_full = worker.fullness >= 1.0
        return is_full, -cached.get(worker.info.worker_id, 0), worker.fullness

    num_tokens = 0
    if pair.prefill is not None:
        num_cached = cached.get(pair.prefill.info.worker_id, 0)
        num_tokens = pair.prefill.prefill_backlog_tokens + ask.num_prompt_tokens - num_cached
    decodes = sorted(pair.decodes, key=rank)[:MAX_DECODE_CANDIDATES]
    return Candidate(
        prefill_id=pair.prefill_id,
        decode_ids=tuple(worker.info.worker_id for worker in decodes),
        together=pair.together,
        cost=num_tokens,
    )
