"""What a retired generation has the newest one do for it: go on with its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ray.exceptions import RayError

from pdray.control.fleet import Fleet
from pdray.core.placement import MoveAsk, Placement, PlacementAsk, WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo

from .takeover import Takeover

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_TIMEOUT_S = 5.0


class Heir:
    """Of one controller; does nothing while that is not retired. Requests go where the same model
    runs, decodes with their KV where its precision is the same, too."""

    def __init__(self, takeover: Takeover, fleet: Fleet) -> None:
        self._takeover = takeover
        self._fleet = fleet

    async def find_targets(
        self, asks: Sequence[MoveAsk], found: Sequence[WorkerAddress | None]
    ) -> list[WorkerAddress | None]:
        """``found``, with what the heir has for those asks that have nobody."""
        heir, targets = self._takeover.heir, list(found)
        left = [index for index, target in enumerate(targets) if target is None]
        if heir is None or not left:
            return targets
        wanted = [(self._info_of(asks[index].source_id), asks[index]) for index in left]
        answers = await _answer(heir.find_targets.remote(wanted))
        for index, target in zip(left, answers or (), strict=False):
            targets[index] = target
        return targets

    def _info_of(self, worker_id: WorkerId) -> WorkerInfo | None:
        """None of one that is the heir's own: some of our decodes run there already."""
        record = self._fleet.get(worker_id)
        return None if record is None else record.info

    async def place(
        self, frontend_id: str, ask: PlacementAsk, model_digest: str | None
    ) -> Placement | None:
        """Where the heir would have a request run that has no worker here; None where it has
        none, either, or may not."""
        heir = self._takeover.heir
        is_served_here = self._fleet.ready(Role.PREFILL) and self._fleet.ready(Role.DECODE)
        if heir is None or model_digest is None or is_served_here:
            return None
        return await _answer(heir.place_for.remote(frontend_id, ask, model_digest))


async def _answer(call: Awaitable[T]) -> T | None:
    try:
        return await asyncio.wait_for(call, _ANSWER_TIMEOUT_S)
    except (RayError, TimeoutError) as error:
        logger.info("no answer of the newest generation: %s", type(error).__name__)
        return None
