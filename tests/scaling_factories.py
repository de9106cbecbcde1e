"""Pools, policies and workers for tests of scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pdray.core.scaling import Aggregation, PlaceCounts
from pdray.core.slo import Slo
from pdray.core.snapshot import Role, WorkerInfo, WorkerSnapshot
from pdray.core.step_time import StepTime
from pdray.policy.scaling.base import PoolView, Rails, ScalingPolicy, ScheduledFloor
from pdray.policy.signals import DEFAULT_TARGETS
from tests.fleet_factories import make_info, make_snapshot

SLO = Slo(ttft_s=1.0, itl_s=0.1, percentile=0.99)
STEP_TIME = StepTime(
    base_s=0.01, prefill_token_s=1e-3, prefill_pair_s=0.0, decode_s=0.01, context_token_s=0.0
)


def make_rails(
    *,
    min_replicas: int = 1,
    max_replicas: int = 10,
    upscale_delay_s: float = 0.0,
    downscale_delay_s: float = 0.0,
    downscale_to_zero_delay_s: float | None = None,
    upscaling_factor: float = 1.0,
    downscaling_factor: float = 1.0,
    max_step_replicas: int | None = None,
    cooldown_s: float = 0.0,
) -> Rails:
    return Rails(
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        upscale_delay_s=upscale_delay_s,
        downscale_delay_s=downscale_delay_s,
        downscale_to_zero_delay_s=downscale_to_zero_delay_s,
        upscaling_factor=upscaling_factor,
        downscaling_factor=downscaling_factor,
        max_step_replicas=max_step_replicas,
        cooldown_s=cooldown_s,
    )


def make_scaling_policy(
    rails: Rails | None = None,
    *,
    role: Role = Role.DECODE,
    targets: Mapping[str, float] | None = None,
    initial_replicas: int = 1,
    standby_replicas: int = 0,
    look_back_period_s: float = 1.0,
    aggregation: Aggregation = Aggregation.MEAN,
    is_predictive: bool = False,
    schedule: tuple[ScheduledFloor, ...] = (),
    is_dry_run: bool = False,
) -> ScalingPolicy:
    return ScalingPolicy(
        rails=rails or make_rails(),
        initial_replicas=initial_replicas,
        standby_replicas=standby_replicas,
        look_back_period_s=look_back_period_s,
        metrics_interval_s=1.0,
        aggregation=aggregation,
        targets=DEFAULT_TARGETS[role] if targets is None else targets,
        slo=SLO,
        is_predictive=is_predictive,
        schedule=schedule,
        is_dry_run=is_dry_run,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeWorker:
    """A WorkerView that says what it is told to."""

    info: WorkerInfo
    snapshot: WorkerSnapshot | None
    is_ready: bool = True
    prefill_backlog_tokens: int = 0
    num_decoding: int = 0
    num_decoding_tokens: int = 0
    step_time: StepTime | None = STEP_TIME
    kv_utilization: float = 0.0
    fullness: float = 0.0


def make_worker(
    role: Role = Role.DECODE,
    *,
    num_running: int = 0,
    prefill_backlog_tokens: int = 0,
    kv_utilization: float = 0.0,
    fullness: float = 0.0,
    max_batch_size: int = 32,
) -> FakeWorker:
    snapshot = replace(make_snapshot("w", step_time=STEP_TIME), num_running=num_running)
    return FakeWorker(
        info=make_info("w", role, max_batch_size=max_batch_size),
        snapshot=snapshot,
        prefill_backlog_tokens=prefill_backlog_tokens,
        num_decoding=num_running,
        num_decoding_tokens=100 * num_running,
        kv_utilization=kv_utilization,
        fullness=fullness,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What tests say of a pool; ``view`` is what a policy reads."""

    workers: tuple[FakeWorker, ...] = field(default=(make_worker(),))
    role: Role = Role.DECODE
    load: float = 0.0
    places: PlaceCounts = field(default_factory=PlaceCounts)
    num_queued: int = 0
    queued_tokens: int = 0
    is_stale: bool = False

    @property
    def view(self) -> PoolView:
        return PoolView(
            name="pool",
            role=self.role,
            workers=self.workers,
            loads=[self.load for _ in self.workers],
            num_own=len(self.workers),
            num_lent=0,
            places=self.places,
            num_queued=self.num_queued,
            queued_tokens=self.queued_tokens,
            requests_per_s=0.0,
            is_stale=self.is_stale,
            slo=SLO,
        )
