"""What is simulated: a fleet, its control plane's settings, and a workload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pdray.control.controller import ControlConfig
from pdray.core.errors import ConfigError
from pdray.core.mode import Mode
from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.policy.placement import PLACEMENT
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
    ``snapshot_s``: the shipped ones do four times a second. The simulation ends when all requests
    have ended, but not before ``duration_s``, and at most ``patience_s`` after the last arrival."""

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


def check(scenario: Scenario) -> None:
    """Raises ConfigError."""
    mode = scenario.control.mode
    if mode is Mode.SERVICE:
        raise ConfigError("mode = 'service' is not simulated; accepted: soft, pooled, auto")
    if scenario.placement not in PLACEMENT.names():
        known = ", ".join(PLACEMENT.names())
        raise ConfigError(f"placement = {scenario.placement!r}; accepted: {known}")
    for name in ("snapshot_s", "tick_s", "scaler_every_s"):
        value = getattr(scenario, name)
        if not value > 0:
            raise ConfigError(f"{name} = {value}; accepted: above 0")
    for phase in Role.MIXED:
        if not any(phase in plan.role for plan in scenario.pools):
            raise ConfigError(f"no pool has the role {str(phase.name).lower()}, or mixed")
    if mode is not Mode.SOFT:
        for source, target in _read_pairs(scenario):
            scenario.profile.link(source, target)


def _read_pairs(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Node groups whose workers may read of each other's: source and target."""
    for source in scenario.pools:
        for target in scenario.pools:
            if Role.PREFILL in source.role and Role.DECODE in target.role:
                for one in source.groups:
                    yield from ((one.node_group, other.node_group) for other in target.groups)
