"""Which generation of an application is wanted, and how it gets room from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from ray.exceptions import RayError

from .handles import ControllerHandle
from .messages import Claim
from .names import find_controller, is_controller, living_actors
from .pool import WorkerPools

logger = logging.getLogger(__name__)

_PENDING_BEFORE_ASKING_S = 3.0
_ANSWER_TIMEOUT_S = 5.0


class Takeover:
    """A generation is retired for as long as the controller of a newer one lives: the workers it
    has go on, none is made. A newer one whose workers find no room has the older ones drain and
    give up theirs, one by one.

    Nobody is told to retire: every controller sees for itself, so one that was remade, or that
    is newer than the one it was rolled back from, comes to the same answer.
    """

    def __init__(
        self,
        application: str,
        own_name: str,
        own_claim: Callable[[], Claim],
        pools: WorkerPools,
    ) -> None:
        self.is_retired = False
        self.heir: ControllerHandle | None = None
        """The newest generation's, of one that is retired."""
        self._application = application
        self._own_name = own_name
        self._own_claim = own_claim
        self._pools = pools
        self._asking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Compares itself with the other generations that live now."""
        own_claim = self._own_claim()
        others = await self._others()
        was_retired = self.is_retired
        self.heir = _newest(own_claim, others)
        self.is_retired = self.heir is not None
        if self.is_retired is not was_retired:
            logger.warning("%s is_retired=%s", self._own_name, self.is_retired)
        if self.is_retired:
            self._pools.adopt_only()
            return
        self._pools.fill()
        is_asking = self._asking is not None and not self._asking.done()
        if others and not is_asking and self._pools.pending_s() > _PENDING_BEFORE_ASKING_S:
            older = [handle for _, handle in others]
            self._asking = asyncio.get_running_loop().create_task(_ask_for_room(older))

    async def _others(self) -> list[tuple[Claim, ControllerHandle]]:
        """One that does not answer is left out: nobody renews its workers, which end."""
        others = []
        for name in await living_actors(self._application):
            if is_controller(name) and name != self._own_name:
                handle = await find_controller(name)
                claim = None if handle is None else await _claim_of(name, handle)
                if claim is not None:
                    others.append((claim, cast("ControllerHandle", handle)))
        return others


def _newest(
    own_claim: Claim, others: list[tuple[Claim, ControllerHandle]]
) -> ControllerHandle | None:
    """None where that is our own."""
    newer = [(claim, handle) for claim, handle in others if claim > own_claim]
    return max(newer, key=lambda each: each[0])[1] if newer else None


async def _claim_of(name: str, handle: ControllerHandle) -> Claim | None:
    try:
        return await asyncio.wait_for(handle.claim.remote(), _ANSWER_TIMEOUT_S)
    except (RayError, TimeoutError) as error:
        logger.info("no answer of another generation: %s %s", name, type(error).__name__)
        return None


async def _ask_for_room(older: list[ControllerHandle]) -> None:
    """Takes as long as the old workers take to drain."""
    answers = await asyncio.gather(
        *(handle.give_up_worker.remote() for handle in older), return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            logger.info("an older generation gives no room: %s", type(answer).__name__)
