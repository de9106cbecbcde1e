"""Workers, snapshots and asks for tests of policies and of the control plane."""

from __future__ import annotations

import random

from pdray.core.link_cost import LinkCost
from pdray.core.placement import PlacementAsk, WorkerAddress
from pdray.core.prefix_report import PREFIX_NAME_BYTES
from pdray.core.request import WorkerId
from pdray.core.slo import Slo
from pdray.core.snapshot import KVSpan, Role, WorkerInfo, WorkerSnapshot, WorkerState
from pdray.core.startup import StartupTimes
from pdray.core.step_time import StepTime
from pdray.policy.placement import PLACEMENT
from pdray.policy.placement.base import PlacementPolicy

SLO = Slo(ttft_s=2.0, itl_s=0.2, percentile=0.99)


def make_policy(name: str, slo: Slo = SLO) -> PlacementPolicy:
    return PLACEMENT.get(name)(slo, random.Random(0))


def make_info(
    worker_id: str,
    role: Role,
    *,
    dtype: str = "float32",
    layout_digest: str = "layout",
    max_batch_size: int = 4,
    max_model_len: int = 4096,
    max_sequence_tokens: int = 1024,
    node_group: str = "laptop",
) -> WorkerInfo:
    return WorkerInfo(
        worker_id=WorkerId(worker_id),
        pool=str(role.name).lower(),
        node_group=node_group,
        role=role,
        address=WorkerAddress(
            worker_id=WorkerId(worker_id), host="127.0.0.1", port=1, link_key=b"key"
        ),
        dtype=dtype,
        layout_digest=layout_digest,
        layout_text=f"layout {layout_digest}",
        model_digest="model",
        block_size=16,
        num_blocks=100,
        max_batch_size=max_batch_size,
        max_tokens_per_step=512,
        max_model_len=max_model_len,
        max_sequence_tokens=max_sequence_tokens,
        kv_spans=(KVSpan(bytes_per_token=1024, window_tokens=None),),
        startup=StartupTimes(process_s=1.5, imports_s=5.0, weights_s=2.0, warmup_s=1.0),
    )


def make_snapshot(
    worker_id: str,
    *,
    state: WorkerState = WorkerState.READY,
    prefill_backlog_tokens: int = 0,
    num_held_blocks: int = 0,
    step_time: StepTime | None = None,
    reads: tuple[LinkCost, ...] = (),
) -> WorkerSnapshot:
    return WorkerSnapshot(
        worker_id=WorkerId(worker_id),
        state=state,
        taken_at=0.0,
        num_waiting=0,
        num_running=0,
        prefill_backlog_tokens=prefill_backlog_tokens,
        num_blocks=100,
        num_free_blocks=100 - num_held_blocks,
        num_cached_blocks=0,
        num_held_blocks=num_held_blocks,
        num_quarantined_blocks=0,
        num_unaccounted_blocks=0,
        prefix_query_tokens=0,
        prefix_hit_tokens=0,
        num_evicted_blocks=0,
        step_time=step_time,
        reads=reads,
        bytes_read=(),
    )


def make_ask(
    request_id: str = "r",
    *,
    num_prompt_tokens: int = 100,
    max_tokens: int = 10,
    prefix_names: tuple[bytes, ...] = (),
    session_id: str | None = None,
    priority: int = 0,
) -> PlacementAsk:
    return PlacementAsk(
        request_id=request_id,
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
        prefix_names=b"".join(name.ljust(PREFIX_NAME_BYTES, b"\0") for name in prefix_names),
        session_id=session_id,
        priority=priority,
    )
