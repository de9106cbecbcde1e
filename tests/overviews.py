"""An overview with everything in it, for tests of those who show it."""

from __future__ import annotations

from dataclasses import replace

from pdray.core.overview import Moment, Overview, PairOverview, Percentiles, WorkerOverview
from pdray.core.scaling import Reading, ScalingDecision, TimedDecision

_READY = WorkerOverview(
    pool="decode",
    index=0,
    node_group="laptop",
    role="decode",
    state="ready",
    worker_id="pdray-decode-0-abc",
    note="",
    num_running=3,
    num_waiting=1,
    max_batch_size=8,
    prefill_backlog_tokens=1200,
    kv_utilization=0.25,
    prefix_hit_ratio=0.5,
    step_s=0.045,
)
_STARTING = replace(
    _READY,
    index=1,
    state="starting",
    worker_id=None,
    note="loads <b>weights</b>",
    num_running=0,
    prefix_hit_ratio=None,
    step_s=None,
)

DECISION = TimedDecision(
    unix_time=1_700_000_000.0,
    decision=ScalingDecision(
        pool="decode",
        current=1,
        starting=1,
        standby=0,
        readings=(Reading(signal="kv_utilization", value=0.95, target=0.85, workers=1.12),),
        demand=1.12,
        aggregated=1.1,
        floor=0.0,
        desired=2,
        allowed=2,
        previous=1,
        is_dry_run=False,
        reason="kv_utilization 0.95, target 0.85: 1.12 workers",
    ),
)

OVERVIEW = Overview(
    application="app",
    mode="pooled",
    placement="cost",
    slo_ttft_s=2.0,
    slo_itl_s=0.2,
    window_s=57.0,
    workers=(
        replace(_READY, pool="prefill", role="prefill", worker_id="pdray-prefill-0-abc"),
        _READY,
        _STARTING,
    ),
    pairs=(
        PairOverview(
            source="prefill", target="decode", bytes_per_s=12_345_678.0, num_bytes=700_000_000
        ),
    ),
    num_frontends=1,
    num_queued=2,
    num_in_flight=5,
    max_in_flight=16,
    num_placed_by_how={"disaggregated": 3, "one_pool": 0, "short": 1, "cheaper": 0, "alone": 0},
    idle_pools=(),
    scaling=(DECISION,),
    ttft=Percentiles(count=9, p50_s=0.4, p90_s=1.5, p99_s=2.5, max_s=3.0),
    itl=Percentiles(count=100, p50_s=0.04, p90_s=0.06, p99_s=0.08, max_s=0.1),
    requests_per_s=0.25,
    tokens_per_s=21.5,
    history=tuple(
        Moment(
            ago_s=5.0 * (119 - number),
            ttft_p50_s=None if number % 7 == 0 else 0.3 + 0.001 * number,
            ttft_p99_s=None if number % 7 == 0 else 0.9 + 0.01 * number,
            itl_p50_s=0.04,
            itl_p99_s=0.06 + 0.0005 * (number % 40),
            requests_per_s=0.2,
            tokens_per_s=10.0 + number % 30,
            bytes_per_s=1e6 * (number % 11),
        )
        for number in range(120)
    ),
)


async def scaling() -> tuple[TimedDecision, ...]:
    return (DECISION,)


async def overview() -> Overview:
    return OVERVIEW
