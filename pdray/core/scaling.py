"""How many workers a pool should have, how that came about, and what became of it: plain data of
the scaling policies, the control plane that asks them, and whoever acts on the answer.

"Replicas" are workers in the words of Ray Serve's autoscaling, whose field names these are.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pdray.core.request import WorkerId


class Aggregation(enum.StrEnum):
    """Of the demands of the look-back period."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceCounts:
    """What a pool has besides the workers that have joined. ``num_failures``: starts that went
    wrong, so far. ``startup_s``: how long the newest start took from asking for the worker to its
    joining; None before the first."""

    num_starting: int = 0
    num_draining: int = 0
    num_failures: int = 0
    startup_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One signal of one pool: its value in its own unit, the value that it should have at most,
    and how many workers that would take."""

    signal: str
    value: float
    target: float
    workers: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    """One look at one pool, whether or not it changed anything.

    ``demand`` is the largest of the readings, ``aggregated`` that of the look-back period, and
    ``floor`` what is foretold or scheduled, all in workers. ``desired`` is what the rails let
    through of it, ``allowed`` what is left of that in the budget: the pool's target, unless
    ``is_dry_run``. ``current`` workers take work, ``starting`` and ``standby`` do not."""

    pool: str
    current: int
    starting: int
    standby: int
    readings: tuple[Reading, ...]
    demand: float
    aggregated: float
    floor: float
    desired: int
    allowed: int
    previous: int
    is_dry_run: bool
    reason: str

    @property
    def is_change(self) -> bool:
        return self.allowed != self.previous


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedDecision:
    """``unix_time``: seconds since 1970."""

    unix_time: float
    decision: ScalingDecision


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolTarget:
    """What a pool should have: ``num_places`` workers, standbys among them, made on the first of
    ``node_groups`` that has room. Where there are more, the first of ``leave_first`` go first."""

    pool: str
    num_places: int
    node_groups: tuple[str, ...]
    leave_first: tuple[WorkerId, ...]
