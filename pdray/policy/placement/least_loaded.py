"""The least loaded prefill worker, and decode workers by the room they have left."""

from __future__ import annotations

from pdray.core.placement import PlacementAsk
from pdray.core.snapshot import FleetView, WorkerView

from .base import MAX_DECODE_CANDIDATES, Pairing, PlacementChoice, pairings


class LeastLoaded:
    """Prefill: fewest prompt tokens still to compute. Decode: a worker is as full as the
    fuller of its batch and its KV memory. Ties go to the worker that joined first."""

    def place(self, view: FleetView, ask: PlacementAsk) -> PlacementChoice | None:
        pairs = pairings(view, ask)
        if not pairs:
            return None
        best = min(pairs, key=lambda pair: (_backlog_tokens(pair), _least_fullness(pair)))
        decodes = sorted(best.decodes, key=_fullness)[:MAX_DECODE_CANDIDATES]
        return PlacementChoice(
            prefill_id=best.prefill_id,
            decode_ids=tuple(worker.info.worker_id for worker in decodes),
            together=best.together,
        )


def _backlog_tokens(pair: Pairing) -> int:
    return 0 if pair.prefill is None else pair.prefill.prefill_backlog_tokens


def _least_fullness(pair: Pairing) -> tuple[float, int]:
    return min(map(_fullness, pair.decodes), default=(0.0, 0))


def _fullness(worker: WorkerView) -> tuple[float, int]:
    batch_utilization = worker.num_decoding / worker.info.max_batch_size
    return max(batch_utilization, worker.kv_utilization), worker.num_decoding
