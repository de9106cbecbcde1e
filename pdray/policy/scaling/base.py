"""What a scaling policy is made of, and what it may read of a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pdray.core.scaling import Aggregation, PlaceCounts
from pdray.core.slo import Slo
from pdray.core.snapshot import Role, WorkerView


@dataclass(frozen=True, slots=True, kw_only=True)
class Rails:
    """Limits round every policy, in the words and with the meaning of Ray Serve's
    AutoscalingConfig (ray/serve/autoscaling_policy.py, 2.60): delays are those for which a wish in
    one direction must last; factors take so much of the way to it. ``max_step_replicas`` bounds one
    change, and for ``cooldown_s`` after a start that went wrong no more workers are asked for."""

    min_replicas: int
    max_replicas: int
    upscale_delay_s: float
    downscale_delay_s: float
    downscale_to_zero_delay_s: float | None
    upscaling_factor: float
    downscaling_factor: float
    max_step_replicas: int | None
    cooldown_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledFloor:
    """At least ``min_replicas`` from ``start_s`` to ``end_s`` after midnight on ``weekdays``
    (0 is Monday), in ``timezone``, an IANA name; past midnight where it ends before it starts."""

    weekdays: frozenset[int]
    start_s: int
    end_s: int
    min_replicas: int
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPolicy:
    """One pool's. ``targets``: the signals that count, each with the value that it should have at
    most. With ``is_predictive``, what is foretold for when a worker asked for now would be ready is
    a floor."""

    rails: Rails
    initial_replicas: int
    standby_replicas: int
    look_back_period_s: float
    metrics_interval_s: float
    aggregation: Aggregation
    targets: Mapping[str, float]
    slo: Slo
    is_predictive: bool
    schedule: tuple[ScheduledFloor, ...]
    is_dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool at one moment. ``workers`` take work of its ``role`` now, those of other pools that
    have got this role among them; ``loads`` are the shares of their time that prompts take.
    ``num_own``: the pool's workers that take work, whatever role they have now, and ``num_lent``
    how many more have another role than there are others' among ``workers``. ``num_queued``
    requests, with ``queued_tokens`` of prompts, wait for room anywhere. ``is_stale``: some living
    worker says nothing, so the numbers are not to be trusted."""

    name: str
    role: Role
    workers: Sequence[WorkerView]
    loads: Sequence[float]
    num_own: int
    num_lent: int
    places: PlaceCounts
    num_queued: int
    queued_tokens: int
    requests_per_s: float
    is_stale: bool
    slo: Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCost:
    """A worker on one node group. None: nobody said what it costs."""

    num_gpus: float
    cost_per_hour: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Over all pools together; None: no limit."""

    max_gpus: float | None = None
    max_cost_per_hour: float | None = None

    @property
    def is_limited(self) -> bool:
        return self.max_gpus is not None or self.max_cost_per_hour is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetup:
    """``policy`` is None where the config gives a fixed number of workers, ``replicas``."""

    name: str
    role: Role
    node_groups: tuple[str, ...]
    replicas: int
    policy: ScalingPolicy | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSetup:
    """All pools of an application, in the config's order."""

    pools: tuple[PoolSetup, ...]
    groups: Mapping[str, GroupCost] = field(default_factory=dict)
    budget: Budget = Budget()
