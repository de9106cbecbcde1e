"""Roles that change while workers run: asks the policy now and then, and remembers for it."""

from __future__ import annotations

from pdray.core.slo import Slo
from pdray.core.snapshot import Role
from pdray.policy.roles import RoleBounds, RoleFlip, RoleMemory, choose_flip

from .fleet import Fleet

_LOOK_S = 0.5


class Roles:
    """``bounds`` has both roles."""

    def __init__(self, fleet: Fleet, slo: Slo, bounds: dict[Role, RoleBounds]) -> None:
        self._fleet = fleet
        self._slo = slo
        self._bounds = bounds
        self._memory = RoleMemory()
        self._looked_at: float | None = None

    def tick(self, now: float) -> RoleFlip | None:
        """The flip that has been made, if there was one."""
        if self._looked_at is not None and now - self._looked_at < _LOOK_S:
            return None
        self._looked_at = now
        flip, self._memory = choose_flip(self._fleet, self._slo, self._bounds, self._memory, now)
        if flip is not None:
            self._fleet.set_role(flip.worker_id, flip.role)
        return flip
