"""Who could go on with a decode that its worker has to let go."""

from __future__ import annotations

from pdray.core.placement import MoveAsk
from pdray.core.snapshot import FleetView, Role, WorkerInfo, WorkerView


def choose_target(view: FleetView, source: WorkerInfo, ask: MoveAsk) -> WorkerView | None:
    """The least full decode worker that can go on from the source's KV as the source would: of
    the same model and precision. None where there is none now."""
    for worker in view.by_load(Role.DECODE):
        info = worker.info
        if info.worker_id == source.worker_id or info.worker_id in ask.refused:
            continue
        if not _is_alike(info, source) or info.max_sequence_tokens < ask.max_total_tokens:
            continue
        if view.can_pair(source.worker_id, info.worker_id):
            return worker
    return None


def _is_alike(one: WorkerInfo, other: WorkerInfo) -> bool:
    return (one.model_digest, one.layout_digest, one.dtype) == (
        *(other.model_digest, other.layout_digest, other.dtype),
    )
