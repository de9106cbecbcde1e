"""What others are told of a worker that has started."""

from __future__ import annotations

from pdray.core.placement import WorkerAddress
from pdray.core.snapshot import WorkerInfo
from pdray.engine.engine import Engine
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
        layout_digest=engine.layout.layout_digest,
        num_blocks=engine.pool.num_blocks,
        max_batch_size=config.engine.max_batch_size,
        max_tokens_per_step=config.engine.max_tokens_per_step,
        max_model_len=config.engine.max_model_len,
        max_sequence_tokens=engine.max_sequence_tokens,
    )
