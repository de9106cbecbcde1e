"""Placement policies by name; each is made with what it may need: the SLO, and a source of
randomness."""

from __future__ import annotations

import random
from collections.abc import Callable

from pdray.core.registry import Registry
from pdray.core.slo import Slo

from .base import PlacementPolicy

PLACEMENT: Registry[Callable[[Slo, random.Random], PlacementPolicy]] = Registry("placement policy")


@PLACEMENT.register("cost")
def _cost(slo: Slo, rng: random.Random) -> PlacementPolicy:
    from .cost import Cost

    return Cost(slo)


@PLACEMENT.register("least_loaded")
def _least_loaded(slo: Slo, rng: random.Random) -> PlacementPolicy:
    from .least_loaded import LeastLoaded

    return LeastLoaded()


@PLACEMENT.register("power_of_two")
def _power_of_two(slo: Slo, rng: random.Random) -> PlacementPolicy:
    from .power_of_two import PowerOfTwo

    return PowerOfTwo(rng)


@PLACEMENT.register("prefix_aware")
def _prefix_aware(slo: Slo, rng: random.Random) -> PlacementPolicy:
    from .prefix_aware import PrefixAware

    return PrefixAware()


@PLACEMENT.register("round_robin")
def _round_robin(slo: Slo, rng: random.Random) -> PlacementPolicy:
    from .round_robin import RoundRobin

    return RoundRobin()
