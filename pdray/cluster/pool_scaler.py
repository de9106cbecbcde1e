"""The control plane's autoscaler at work: it is told of places and asked, its answer acted upon."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable

from pdray.control.controller import ControlPlane
from pdray.core.scaling import PlaceCounts, TimedDecision

from .pool import WorkerPools

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_MAX_KEPT = 512


class PoolScaler:
    """Of one generation; the only one that acts on its pools' numbers."""

    def __init__(
        self, control: ControlPlane, pools: WorkerPools, pool_names: Iterable[str]
    ) -> None:
        self._control = control
        self._pools = pools
        self._pool_names = tuple(pool_names)
        self._looked_at: float | None = None
        self._told: dict[str, PlaceCounts] = {}
        self._newest: dict[str, TimedDecision] = {}
        self._decisions: deque[TimedDecision] = deque(maxlen=_MAX_KEPT)

    def found(self, num_living: dict[str, int], now: float) -> None:
        """Workers that lived when this controller was made."""
        for pool, num_workers in num_living.items():
            self._control.places_found(pool, num_workers, now)

    def look(self, now: float) -> None:
        """To be called often; looks when it is time."""
        if self._looked_at is not None and now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        for pool in self._pool_names:
            places = self._pools.places(pool)
            if self._told.get(pool) != places:
                self._told[pool] = places
                self._control.places_told(pool, places, now)
        unix_time = time.time()
        for decision in self._control.scale(unix_time, now):
            self._keep(TimedDecision(unix_time=unix_time, decision=decision))
        for target in self._control.pool_targets():
            self._pools.set_target(target)

    @property
    def newest(self) -> tuple[TimedDecision, ...]:
        """Each pool's."""
        return tuple(self._newest.values())

    @property
    def decisions(self) -> tuple[TimedDecision, ...]:
        """The oldest first: those that changed something, and of the others those for another
        reason than the one before."""
        return tuple(self._decisions)

    def _keep(self, timed: TimedDecision) -> None:
        decision = timed.decision
        before = self._newest.get(decision.pool)
        self._newest[decision.pool] = timed
        if decision.is_change:
            logger.warning(
                "scale%s: pool=%s from=%s to=%s: %s",
                " (dry run)" if decision.is_dry_run else "",
                *(decision.pool, decision.previous, decision.allowed, decision.reason),
            )
        if decision.is_change or before is None or before.decision.reason != decision.reason:
            self._decisions.append(timed)
