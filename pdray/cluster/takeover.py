"""How a new generation gets room from the older ones of its application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from ray.exceptions import RayActorError

from .handles import ControllerHandle
from .names import find_controller, is_controller, living_actors
from .pool import WorkerPools

logger = logging.getLogger(__name__)

_PENDING_BEFORE_ASKING_S = 3.0
_TICK_S = 0.5


class Takeover:
    """Tells older controllers to retire; while workers of the new one find no room, has the
    old ones drain and give up theirs, one by one."""

    def __init__(self, application: str, own_name: str, pools: WorkerPools) -> None:
        self._application = application
        self._own_name = own_name
        self._pools = pools

    async def run(self) -> None:
        """Returns when no older controller is left."""
        older: dict[str, ControllerHandle] = {}
        for name in await living_actors(self._application):
            if is_controller(name) and name != self._own_name:
                handle = await find_controller(name)
                if handle is not None and await _answers(name, handle.retire.remote()):
                    older[name] = handle
        while older:
            await asyncio.sleep(_TICK_S)
            is_asking = self._pools.pending_s() > _PENDING_BEFORE_ASKING_S
            for name, handle in list(older.items()):
                call = handle.give_up_worker.remote() if is_asking else handle.ping.remote()
                if not await _answers(name, call):
                    del older[name]


async def _answers(name: str, call: Awaitable[object]) -> bool:
    """False once the actor has gone."""
    try:
        await call
    except RayActorError:
        logger.info("an older generation has ended: %s", name)
        return False
    return True
