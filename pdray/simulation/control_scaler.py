"""The control plane's own autoscaler at work on simulated pools: as cluster/pool_scaler.py."""

from __future__ import annotations

from pdray.control.controller import ControlPlane
from pdray.core.scaling import PlaceCounts, TimedDecision

from .pools import SimulatedPools


class ControlScaler:
    """``unix_time``: seconds since 1970 at the simulation's start, for policies with a schedule."""

    def __init__(self, control: ControlPlane, pools: SimulatedPools, unix_time: float) -> None:
        self._control = control
        self._pools = pools
        self._unix_time = unix_time
        self._told: dict[str, PlaceCounts] = {}
        self.decisions: list[TimedDecision] = []
        """Those that changed something."""

    def look(self, now: float) -> None:
        """To be called at least as often as policies want to look."""
        for pool in self._pools.plans:
            counts = self._pools.counts(pool)
            if self._told.get(pool) != counts:
                self._told[pool] = counts
                self._control.places_told(pool, counts, now)
        unix_time = self._unix_time + now
        for decision in self._control.scale(unix_time, now):
            if decision.is_change:
                self.decisions.append(TimedDecision(unix_time=unix_time, decision=decision))
        for target in self._control.pool_targets():
            self._pools.set_target(target, now)
