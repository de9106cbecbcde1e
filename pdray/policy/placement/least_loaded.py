"""The least loaded prefill worker, and decode workers by the room they have left."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pdray.core.mode import Mode
from pdray.core.placement import PlacementAsk, Together
from pdray.core.snapshot import FleetView, Role, WorkerView

from .base import MAX_DECODE_CANDIDATES, Candidate, Pairing, PlacementChoice, pairings


class LeastLoaded:
    """Prefill: fewest prompt tokens still to compute, then the least full. Decode: a worker is as
    full as the fuller of its batch and its KV memory. Ties go to the worker that joined first.
    Looks at the first few of the fleet's orders, however many workers there are."""

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        best = _best(view, ask)
        if best is None:
            return None
        return PlacementChoice(
            prefill_id=best.prefill_id,
            decode_ids=tuple(worker.info.worker_id for worker in best.decodes),
            together=best.together,
        )

    def explain(self, view: FleetView, ask: PlacementAsk) -> tuple[Candidate, ...]:
        return tuple(_candidate(pair) for pair in sorted(pairings(view, ask), key=_load))


def _load(pair: Pairing) -> tuple[int, float, int]:
    """The fleet's order: of what does not prefill, by the least full."""
    if pair.prefill is None:
        least = min(pair.decodes, key=_fullness)
        return 0, *_fullness(least)
    return pair.prefill.prefill_backlog_tokens, *_fullness(pair.prefill)


def _fullness(worker: WorkerView) -> tuple[float, int]:
    return worker.fullness, worker.num_decoding


def _candidate(pair: Pairing) -> Candidate:
    decodes = sorted(pair.decodes, key=_fullness)[:MAX_DECODE_CANDIDATES]
    return Candidate(
        prefill_id=pair.prefill_id,
        decode_ids=tuple(worker.info.worker_id for worker in decodes),
        together=pair.together,
        cost=_load(pair)[0],
    )


def _best(view: FleetView, ask: PlacementAsk) -> Pairing | None:
    if view.phases is Role.PREFILL:
        first = next(_prefills(view, ask), None)
        return None if first is None else Pairing(prefill=first, decodes=())
    if view.phases is Role.DECODE:
        decodes = list(islice(_decodes(view, ask), MAX_DECODE_CANDIDATES))
        return Pairing(prefill=None, decodes=decodes) if decodes else None
    if view.mode is Mode.SOFT:
        return _alone(view, ask, Together.ONE_POOL)
    return _apart(view, ask) or _alone(view, ask, Together.ALONE)


def _prefills(view: FleetView, ask: PlacementAsk) -> Iterator[WorkerView]:
    for worker in view.by_load(Role.PREFILL):
        if worker.info.max_sequence_tokens >= ask.num_prompt_tokens:
            yield worker


def _decodes(view: FleetView, ask: PlacementAsk) -> Iterator[WorkerView]:
    num_total_tokens = ask.num_prompt_tokens + ask.max_tokens
    for worker in view.by_load(Role.DECODE):
        if worker.info.max_sequence_tokens >= num_total_tokens:
            yield worker


def _apart(view: FleetView, ask: PlacementAsk) -> Pairing | None:
    decode_layouts: set[str] | None = None
    for prefill in _prefills(view, ask):
        if decode_layouts is None or prefill.info.layout_digest in decode_layouts:
            others = list(islice(_others(view, ask, prefill), MAX_DECODE_CANDIDATES))
            if others:
                return Pairing(prefill=prefill, decodes=others)
        if decode_layouts is None:
            # Found out once: else every prefill worker without a partner would look at them all.
            decode_layouts = {each.info.layout_digest for each in _decodes(view, ask)}
    return None


def _others(view: FleetView, ask: PlacementAsk, prefill: WorkerView) -> Iterator[WorkerView]:
    prefill_id, layout = prefill.info.worker_id, prefill.info.layout_digest
    for decode in _decodes(view, ask):
        decode_id = decode.info.worker_id
        is_other = decode.info.layout_digest == layout and decode_id != prefill_id
        if is_other and view.can_pair(prefill_id, decode_id):
            yield decode


def _alone(view: FleetView, ask: PlacementAsk, together: Together) -> Pairing | None:
    num_total_tokens = ask.num_prompt_tokens + ask.max_tokens
    for worker in _prefills(view, ask):
        if Role.DECODE in worker.info.role and worker.info.max_sequence_tokens >= num_total_tokens:
            return Pairing(prefill=worker, decodes=[worker], together=together)
    return None
