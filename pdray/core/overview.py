"""What an operator sees of an application at one moment: for ``pdray status``, ``pdray top`` and
the dashboard."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.scaling import TimedDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of ``count`` durations."""

    count: int
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOverview:
    """One place in a pool. What only a living worker has is None or 0 without one. ``step_s``: how
    long a decode step of its batch takes, as fitted; ``note`` says what it does while it starts,
    or how the last one ended."""

    pool: str
    index: int
    node_group: str
    role: str
    state: str
    worker_id: str | None
    note: str
    num_running: int
    num_waiting: int
    max_batch_size: int
    prefill_backlog_tokens: int
    kv_utilization: float
    prefix_hit_ratio: float | None
    step_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOverview:
    """What workers of pool ``target`` read of workers of pool ``source``, of late."""

    source: str
    target: str
    bytes_per_s: float
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Some seconds of the past that ended ``ago_s`` ago. None where nothing was measured."""

    ago_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    requests_per_s: float
    tokens_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Latencies are those of the last ``window_s`` seconds as frontends saw them, None where there
    were none; rates are of that time as well. ``num_placed_by_how`` counts since the controller
    started."""

    application: str
    mode: str
    placement: str
    slo_ttft_s: float
    slo_itl_s: float
    window_s: float
    workers: tuple[WorkerOverview, ...]
    pairs: tuple[PairOverview, ...]
    num_frontends: int
    num_queued: int
    num_in_flight: int
    max_in_flight: int
    num_placed_by_how: dict[str, int]
    idle_pools: tuple[str, ...]
    scaling: tuple[TimedDecision, ...]
    """The newest decision for each pool that is scaled."""
    ttft: Percentiles | None
    itl: Percentiles | None
    requests_per_s: float
    tokens_per_s: float
    history: tuple[Moment, ...]
    """The oldest first."""

    @property
    def disaggregated_share(self) -> float | None:
        """Of all requests placed so far; None before the first."""
        total = sum(self.num_placed_by_how.values())
        return self.num_placed_by_how["disaggregated"] / total if total else None
