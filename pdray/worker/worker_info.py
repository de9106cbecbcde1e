"""What others are told of a worker that has started: once, and again and again."""

from __future__ import annotations

from pdray.core.link_cost import LinkCost
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import BytesRead, KVSpan, WorkerInfo, WorkerSnapshot, WorkerState
from pdray.engine.engine import Engine
from pdray.kvcache.layout import KVLayout
from pdray.worker.config import WorkerConfig


def info_of(config: WorkerConfig, engine: Engine, *, port: int, link_key: bytes) -> WorkerInfo:
    return WorkerInfo(
        worker_id=config.worker_id,
        pool=config.pool,
        node_group=config.node_group,
        role=config.role,
        address=WorkerAddress(
            worker_id=config.worker_id, host=config.host, port=port, link_key=link_key
        ),
        dtype=engine.layout.dtype,
        layout_digest=engine.layout.content_digest,
        layout_text=engine.layout.describe(),
        model_digest=engine.layout.model_digest,
        block_size=engine.layout.block_size,
        num_blocks=engine.pool.num_blocks,
        max_batch_size=config.engine.max_batch_size,
        max_tokens_per_step=config.engine.max_tokens_per_step,
        max_model_len=config.engine.max_model_len,
        max_sequence_tokens=engine.max_sequence_tokens,
        kv_spans=spans_of(engine.layout),
    )


def spans_of(layout: KVLayout) -> tuple[KVSpan, ...]:
    """Of every group, as blocks are read whole: with what pads the smaller groups' blocks."""
    bytes_per_token = layout.block_bytes // layout.block_size
    return tuple(
        KVSpan(bytes_per_token=bytes_per_token, window_tokens=group.sliding_window)
        for group in layout.groups
    )


def snapshot_of(
    worker_id: WorkerId,
    engine: Engine,
    *,
    state: WorkerState,
    taken_at: float,
    num_queued: int,
    queued_tokens: int,
    reads: tuple[LinkCost, ...],
    bytes_read: tuple[BytesRead, ...],
) -> WorkerSnapshot:
    """``num_queued`` requests with ``queued_tokens`` to be computed wait before the engine."""
    pool = engine.pool
    return WorkerSnapshot(
        worker_id=worker_id,
        state=state,
        taken_at=taken_at,
        num_waiting=num_queued + engine.num_waiting,
        num_running=engine.num_running,
        prefill_backlog_tokens=queued_tokens + engine.prefill_backlog_tokens,
        num_blocks=pool.num_blocks,
        num_free_blocks=pool.num_free_blocks,
        num_cached_blocks=pool.num_cached_blocks,
        num_held_blocks=pool.num_held_blocks,
        num_quarantined_blocks=pool.num_quarantined_blocks,
        num_unaccounted_blocks=engine.num_unaccounted_blocks,
        prefix_query_tokens=engine.prefix_cache.num_query_tokens,
        prefix_hit_tokens=engine.prefix_cache.num_hit_tokens,
        num_evicted_blocks=pool.num_evictions,
        step_time=engine.step_time,
        reads=reads,
        bytes_read=bytes_read,
    )
