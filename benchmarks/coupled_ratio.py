"""Pools whose sizes stand in a fixed ratio, as where prefill and decode are deployed in units."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pdray.core.scaling import PlaceCounts
from pdray.simulation.scaler import PoolView, ScalingView

_EPSILON = 1e-9


class CoupledRatio:
    """The control plane's policies say what each pool needs; all get as much as keeps ``ratio``
    where the neediest has what it needs."""

    def __init__(self, ratio: Mapping[str, int], startup_s: Mapping[str, float]) -> None:
        total = sum(ratio.values())
        self._shares = {pool: number / total for pool, number in ratio.items()}
        self._startup_s = startup_s

    def look(self, view: ScalingView, now: float) -> Mapping[str, int]:
        for name, pool in view.pools.items():
            view.control.places_told(name, _counts(pool, self._startup_s[name]), now)
        view.control.scale(now, now)
        needed = {target.pool: target.num_places for target in view.control.pool_targets()}
        total = max(number / self._shares[pool] for pool, number in needed.items())
        return {
            pool: max(math.ceil(total * share - _EPSILON), 1)
            for pool, share in self._shares.items()
        }


def _counts(pool: PoolView, startup_s: float) -> PlaceCounts:
    return PlaceCounts(
        num_starting=pool.num_starting,
        num_draining=pool.num_draining,
        num_failures=0,
        startup_s=startup_s,
    )
