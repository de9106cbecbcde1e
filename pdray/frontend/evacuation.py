"""What becomes of decodes on workers that drain: others go on with them, one by one, for as long as
those workers live."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from pdray.core.errors import MigrationError, PdrayError
from pdray.core.placement import MoveAsk, WorkerAddress
from pdray.core.request import WorkerId
from pdray.frontend.controller_client import ControllerClient
from pdray.frontend.live_request import LiveRequest
from pdray.frontend.migrations import Migrations

logger = logging.getLogger(__name__)

LOOK_S = 0.1
"""Between two looks: what was placed there before may come to decode there yet, and others may
find room."""
MAX_MOVES = 8
"""Of one worker's at a time: they share its way out."""


@dataclass(slots=True, eq=False)
class _Leaver:
    """A worker that drains, and what is on its way from there."""

    worker_id: str
    looking: asyncio.Task[None] | None = None
    moves: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    refused: dict[str, tuple[WorkerId, ...]] = field(default_factory=dict)
    """By request, who would not have it in this round of asking."""


class Evacuation:
    """Of one frontend's requests. One that nobody takes goes on where it is, and is placed again
    when its worker has gone."""

    def __init__(
        self,
        controller: ControllerClient,
        migrations: Migrations,
        decoding_at: Callable[[str], list[LiveRequest]],
    ) -> None:
        self._controller = controller
        self._migrations = migrations
        self._decoding_at = decoding_at
        self._leavers: dict[str, _Leaver] = {}

    def begin(self, worker_id: str) -> None:
        """It drains. Told again, nothing changes."""
        if worker_id not in self._leavers:
            logger.info("decodes are to leave %s, which drains", worker_id)
            leaver = self._leavers[worker_id] = _Leaver(worker_id)
            leaver.looking = asyncio.get_running_loop().create_task(self._empty(leaver))

    def end(self, worker_id: str) -> None:
        """It has gone, or cannot be reached."""
        leaver = self._leavers.pop(worker_id, None)
        if leaver is not None and leaver.looking is not None:
            leaver.looking.cancel()

    def stop(self) -> None:
        for leaver in list(self._leavers.values()):
            self.end(leaver.worker_id)
            for move in leaver.moves.values():
                move.cancel()

    async def _empty(self, leaver: _Leaver) -> None:
        while True:
            try:
                await self._move_some(leaver)
            except PdrayError as error:
                logger.warning("no answer to who goes on: %s", error)
            except Exception:  # a task's outermost level: what is left there must not stay
                logger.exception("leaving %s failed", leaver.worker_id)
            await asyncio.sleep(LOOK_S)

    async def _move_some(self, leaver: _Leaver) -> None:
        still = [
            live
            for live in self._decoding_at(leaver.worker_id)
            if live.request.request_id not in leaver.moves
        ][: MAX_MOVES - len(leaver.moves)]
        if not still:
            return
        targets = await self._controller.move([_ask(live, leaver) for live in still])
        for live, target in zip(still, targets, strict=True):
            request_id = live.request.request_id
            if target is None:
                leaver.refused.pop(request_id, None)  # they may have room by and by
            else:
                leaver.moves[request_id] = asyncio.get_running_loop().create_task(
                    self._move(leaver, request_id, target)
                )

    async def _move(self, leaver: _Leaver, request_id: str, target: WorkerAddress) -> None:
        try:
            await self._migrations.migrate(request_id, target)
        except MigrationError as error:
            logger.info("does not move: %s, request_id=%s", error, request_id)
            refused = leaver.refused.get(request_id, ())
            leaver.refused[request_id] = (*refused, target.worker_id)
        except Exception:  # a task's outermost level
            logger.exception("a move failed: request_id=%s", request_id)
        finally:
            del leaver.moves[request_id]


def _ask(live: LiveRequest, leaver: _Leaver) -> MoveAsk:
    request_id = live.request.request_id
    return MoveAsk(
        request_id=request_id,
        source_id=WorkerId(leaver.worker_id),
        max_total_tokens=live.request.max_total_tokens,
        refused=leaver.refused.get(request_id, ()),
    )
