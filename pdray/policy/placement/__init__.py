"""Placement policies by name."""

from __future__ import annotations

from collections.abc import Callable

from pdray.core.registry import Registry

from .base import PlacementPolicy

PLACEMENT: Registry[Callable[[], PlacementPolicy]] = Registry("placement policy")


@PLACEMENT.register("least_loaded")
def _least_loaded() -> PlacementPolicy:
    from .least_loaded import LeastLoaded

    return LeastLoaded()


@PLACEMENT.register("round_robin")
def _round_robin() -> PlacementPolicy:
    from .round_robin import RoundRobin

    return RoundRobin()
