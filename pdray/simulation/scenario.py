"""What is simulated: a fleet, its control plane's settings, and a workload."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdray.control.controller import ControlConfig
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.workload.request import WorkloadRequest

from .profile import Profile
from .scaler import Scaler


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """A node group that a pool may use, with room for so many of its workers; None: for any
    number."""

    node_group: str
    max_workers: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """``groups`` are in order of preference. ``num_workers`` are there from the start."""

    name: str
    role: Role
    groups: tuple[GroupPlan, ...]
    num_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``requests`` come in order of arrival. Their asks name ``max_tokens``, or as many as they
    make where that is None or fewer. The pools' numbers are the ``scaler``'s, or else those of
    the policies in ``control.scaling``; without either they stay as they begin. ``unix_time`` is
    the begin in seconds since 1970, for policies with a schedule. Workers tell of themselves every
    ``snapshot_s``: the shipped ones do four times a second. The simulation ends when all requests have ended, but
    not before ``duration_s``, and at most ``patience_s`` after the last arrival."""

    profile: Profile
    pools: tuple[PoolPlan, ...]
    requests: Iterable[WorkloadRequest]
    slo: Slo
    control: ControlConfig
    placement: str = "cost"
    scaler: Scaler | None = None
    scaler_every_s: float = 1.0
    max_tokens: int | None = None
    seed: int = 0
    snapshot_s: float = 0.25
    tick_s: float = 0.25
    duration_s: float = 0.0
    unix_time: float = 0.0
    patience_s: float = 3600.0
