"""What simulated workers tell the control plane of themselves."""

from __future__ import annotations

from pdray.core.link_cost import LinkCost
from pdray.core.snapshot import WorkerSnapshot, WorkerState
from pdray.core.step_time import StepTime

from .worker import SimulatedWorker


def snapshot_of(
    worker: SimulatedWorker, step_time: StepTime, reads: tuple[LinkCost, ...], now: float
) -> WorkerSnapshot:
    """As worker/worker_info.py has it. A worker knows from the start how long its steps take."""
    blocks = worker.blocks
    return WorkerSnapshot(
        worker_id=worker.info.worker_id,
        state=WorkerState.DRAINING if worker.is_draining else WorkerState.READY,
        taken_at=now,
        num_waiting=worker.num_waiting,
        num_running=worker.num_running,
        prefill_backlog_tokens=worker.backlog_tokens,
        num_blocks=blocks.num_blocks,
        num_free_blocks=blocks.num_free,
        num_cached_blocks=blocks.num_cached,
        num_held_blocks=blocks.num_held,
        num_quarantined_blocks=0,
        num_unaccounted_blocks=0,
        prefix_query_tokens=worker.num_query_tokens,
        prefix_hit_tokens=worker.num_hit_tokens,
        num_evicted_blocks=blocks.num_evicted,
        step_time=step_time,
        reads=reads,
        bytes_read=(),
    )
