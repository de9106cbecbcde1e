"""One pool's policy, looked at once: signals, look-back, floors, rails."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from pdray.core.scaling import Aggregation, Reading
from pdray.policy.rails import RailsMemory, Wish, apply_rails
from pdray.policy.signals import LOADS, read_signals

from .base import PoolView, ScalingPolicy
from .schedule import scheduled_floor
from .trend import Trend, follow, foretell

UNKNOWN_STARTUP_S = 60.0
_EPSILON = 1e-6
_NOBODY = 0.05
"""Of a worker: a forecast of less is what is left of a load that has gone, and nobody needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyMemory:
    """What a policy knows of earlier looks at its pool. ``demands`` are those of the look-back
    period with their times, the oldest first."""

    target: int
    demands: tuple[tuple[float, float], ...] = ()
    trend: Trend | None = None
    rails: RailsMemory = field(default_factory=RailsMemory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """See ``ScalingDecision``, whose words these are."""

    readings: tuple[Reading, ...]
    demand: float
    aggregated: float
    floor: float
    desired: int
    reason: str


def evaluate(
    view: PoolView, policy: ScalingPolicy, memory: PolicyMemory, unix_time: float, now: float
) -> tuple[Evaluation, PolicyMemory]:
    """To be called every ``metrics_interval_s``. The memory's ``target`` stays as it is: what is
    desired may be more than a budget allows."""
    readings = read_signals(view, policy.targets)
    if blind := _blind(view, memory):
        return _hold(readings, memory, blind), memory
    demand = _demand(view, readings)
    memory = _remember(view, policy, memory, readings, demand, now)
    aggregated = _aggregate(policy.aggregation, [each for _, each in memory.demands])
    floor = float(scheduled_floor(policy.schedule, unix_time))
    if policy.is_predictive and memory.trend is not None:
        startup_s = view.places.startup_s or UNKNOWN_STARTUP_S
        foretold = foretell(memory.trend, startup_s + policy.metrics_interval_s)
        floor = max(floor, foretold if foretold > _NOBODY else 0.0)
    wish = Wish(
        workers=max(aggregated + view.num_lent, 0.0),
        floor=math.ceil(floor - _EPSILON),
        current=view.num_own + view.places.num_starting,
        target=memory.target,
        num_failures=view.places.num_failures,
    )
    desired, held_by, rails = apply_rails(wish, policy.rails, memory.rails, now)
    evaluation = Evaluation(
        readings=readings,
        demand=demand,
        aggregated=aggregated,
        floor=floor,
        desired=desired,
        reason=held_by or _reason(readings, demand, floor),
    )
    return evaluation, replace(memory, rails=rails)


def _blind(view: PoolView, memory: PolicyMemory) -> str:
    """Why nothing can be said of what the pool needs; empty where something can."""
    if view.is_stale:
        return "stale: a worker says nothing, so the last target holds"
    if memory.target and not view.workers:
        return "no worker takes work yet, so the last target holds"
    return ""


def _hold(readings: tuple[Reading, ...], memory: PolicyMemory, reason: str) -> Evaluation:
    return Evaluation(
        readings=readings,
        demand=0.0,
        aggregated=0.0,
        floor=0.0,
        desired=memory.target,
        reason=reason,
    )


def _demand(view: PoolView, readings: tuple[Reading, ...]) -> float:
    """The largest; one that has no workers needs the first as soon as anybody waits."""
    if not view.workers:
        return 1.0 if view.num_queued else 0.0
    return max((reading.workers for reading in readings), default=0.0)


def _remember(
    view: PoolView,
    policy: ScalingPolicy,
    memory: PolicyMemory,
    readings: tuple[Reading, ...],
    demand: float,
    now: float,
) -> PolicyMemory:
    kept = tuple(each for each in memory.demands if each[0] > now - policy.look_back_period_s)
    loads = [reading.workers for reading in readings if reading.signal in LOADS]
    if not view.workers:
        loads = [0.0]
    trend = follow(memory.trend, max(loads), now) if loads else memory.trend
    return replace(memory, demands=(*kept, (now, demand)), trend=trend)


def _aggregate(how: Aggregation, demands: list[float]) -> float:
    match how:
        case Aggregation.MAX:
            return max(demands)
        case Aggregation.MIN:
            return min(demands)
        case Aggregation.MEAN:
            return sum(demands) / len(demands)


def _reason(readings: tuple[Reading, ...], demand: float, floor: float) -> str:
    if floor > demand:
        return f"foretold or scheduled: {floor:.2f} workers"
    if not readings:
        return "requests wait" if demand else "nobody waits"
    top = max(readings, key=lambda reading: reading.workers)
    return f"{top.signal} {top.value:.3g}, target {top.target:.3g}: {top.workers:.2f} workers"
