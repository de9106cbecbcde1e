"""A frontend's way to its controller through Ray, whichever life that is in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ray.exceptions import RayActorError, RayError

from pdray.config import PdrayConfig
from pdray.core.clock import WallClock
from pdray.core.errors import UnavailableError
from pdray.core.overview import Overview
from pdray.core.placement import (
    InFlight,
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)
from pdray.core.scaling import TimedDecision
from pdray.metrics.exposition import merge_expositions
from pdray.metrics.prometheus import FrontendMetrics

from .controller import get_or_make_controller
from .handles import ControllerHandle
from .messages import ControllerStatus, FrontendReport
from .names import kill_actor
from .rounds import Round, pack_round, unpack_answers

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RENEW_S = 1.0
_RETRY_S = 0.1
_GIVE_UP_AFTER_S = 60.0
_HANGS_AFTER_S = 30.0
_SCRAPE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Asked:
    ask: PlacementAsk
    answer: asyncio.Future[Placement | Queued | Refusal]


class RayControllerClient:
    """The ControllerClient of one frontend. All methods are for one event loop.

    One round is under way at a time, with all ends and asks: what comes meanwhile goes with the
    next one, so that the controller sees few calls under load, and in order.
    """

    def __init__(self, config: PdrayConfig, frontend_id: str) -> None:
        self._config = config
        self._frontend_id = frontend_id
        self._clock = WallClock()
        self._handle: ControllerHandle | None = None
        self._making = asyncio.Lock()
        self._claimed_at = time.time()
        self._limits: ServingLimits | None = None
        self._has_limits = asyncio.Event()
        self._to_ask: dict[str, _Asked] = {}
        self._to_finish: list[str] = []
        self._to_keep: list[KeptPrefix] = []
        self._open: dict[str, PlacementAsk] = {}
        self._in_flight: dict[str, InFlight] = {}
        self._has_news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: FrontendMetrics | None = None

    async def start(self, metrics: FrontendMetrics) -> None:
        """Gets or makes the controller. ``metrics`` are this frontend's, which other replicas show
        in their scrapes."""
        loop = asyncio.get_running_loop()
        self._metrics = metrics
        await self._renew()
        self._tasks = [
            loop.create_task(self._forever(self._send_round)),
            loop.create_task(self._forever(self._renew_later)),
        ]

    async def close(self) -> None:
        """Tells the controller that this frontend is gone, with all that it had in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._handle is not None:
            try:
                await asyncio.wait_for(
                    self._handle.frontend_gone.remote(self._frontend_id), _SCRAPE_TIMEOUT_S
                )
            except (RayError, TimeoutError) as error:
                logger.info("no controller to say goodbye to: %s", type(error).__name__)

    async def place(self, asks: Sequence[PlacementAsk]) -> list[Placement | Queued | Refusal]:
        """Answers in the order of ``asks``. Raises UnavailableError where no controller can be
        reached or made for a long time."""
        loop = asyncio.get_running_loop()
        asked = [_Asked(ask, loop.create_future()) for ask in asks]
        for each in asked:
            self._open[each.ask.request_id] = each.ask
            self._to_ask[each.ask.request_id] = each
        self._has_news.set()
        return list(await asyncio.gather(*(each.answer for each in asked)))

    async def wait(self, request_id: str) -> Placement | Refusal:
        """The answer to a Queued request; a controller that does not know it is asked again."""
        timeout_s = self._config.controller.queue_timeout_s + _GIVE_UP_AFTER_S
        while True:
            answer = await self._call(lambda c: c.wait.remote(request_id), timeout_s)
            if answer is None:
                ask = self._open.get(request_id)
                if ask is None:
                    return Refusal(request_id=request_id, reason="is over", retry_after_s=None)
                (again,) = await self.place([ask])
                if isinstance(again, Queued):
                    continue
                return again
            self._note(answer)
            return answer

    async def move(self, asks: Sequence[MoveAsk]) -> list[WorkerAddress | None]:
        """In the order of ``asks``. Raises UnavailableError."""
        targets = await self._call(lambda c: c.move.remote(self._frontend_id, asks))
        for ask, target in zip(asks, targets, strict=True):
            in_flight = self._in_flight.get(ask.request_id)
            if target is not None and in_flight is not None:
                moved = replace(in_flight, decode_id=target.worker_id)
                self._in_flight[ask.request_id] = moved
        return targets

    def finished(self, request_ids: Sequence[str], kept: Sequence[KeptPrefix] = ()) -> None:
        """Does not wait. An ask that has not left yet never will."""
        self._to_keep += kept
        for request_id in request_ids:
            self._in_flight.pop(request_id, None)
            unsent = self._to_ask.pop(request_id, None)
            if unsent is not None:
                unsent.answer.cancel()
            if self._open.pop(request_id, None) is not None:
                self._to_finish.append(request_id)
        self._has_news.set()

    async def limits(self) -> ServingLimits:
        """What the workers hold, as of the last second; the first call may have to wait for
        workers to start. Raises UnavailableError when that takes longer than a queued request
        would wait."""
        timeout_s = self._config.controller.queue_timeout_s
        try:
            await asyncio.wait_for(self._has_limits.wait(), timeout_s)
        except TimeoutError:
            raise UnavailableError(f"no workers are up after {timeout_s:g} s") from None
        assert self._limits is not None
        return self._limits

    async def status(self) -> ControllerStatus:
        """What lives, what is missing and why: for health checks."""
        return await self._call(lambda controller: controller.status.remote())

    async def metrics_text(self) -> bytes:
        """One exposition of all workers, all frontends and the controller. Raises
        UnavailableError where the controller does not answer in time."""
        call = self._call(lambda controller: controller.metrics.remote(self._frontend_id))
        others = await _in_time(call, "answered a scrape")
        assert self._metrics is not None, "not started"
        return merge_expositions([self._metrics.text(), *others])

    async def overview(self) -> Overview:
        """For operators. Raises UnavailableError where the controller does not answer in time."""
        call = self._call(lambda controller: controller.overview.remote())
        return await _in_time(call, "answered")

    async def scaling(self) -> tuple[TimedDecision, ...]:
        """The last decisions on the pools' numbers. Raises UnavailableError where the controller
        does not answer in time."""
        return await _in_time(self._call(lambda c: c.scaling.remote()), "answered")

    async def _send_round(self) -> None:
        await self._has_news.wait()
        self._has_news.clear()
        asked, self._to_ask = self._to_ask, {}
        finished, self._to_finish = self._to_finish, []
        kept, self._to_keep = self._to_keep, []
        if not (asked or finished or kept):
            return
        asks = tuple(each.ask for each in asked.values())
        told = pack_round(Round(ended=tuple(finished), kept=tuple(kept), asks=asks))
        try:
            packed = await self._call(lambda c: c.exchange.remote(self._frontend_id, told))
        except UnavailableError as error:
            # Whoever takes the next round hears first what is still in flight, so no end is lost.
            logger.info("a round was lost: %d asks, %d ends: %s", len(asks), len(finished), error)
            for each in asked.values():
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for each, answer in zip(asked.values(), unpack_answers(packed, asks), strict=True):
            if not isinstance(answer, Queued):
                self._note(answer)
            if not each.answer.done():
                each.answer.set_result(answer)

    def _note(self, answer: Placement | Refusal) -> None:
        """Remembers what is in flight, for a controller that does not."""
        ask = self._open.get(answer.request_id)
        if ask is None:
            return
        if isinstance(answer, Refusal):
            del self._open[answer.request_id]
            return
        self._in_flight[answer.request_id] = InFlight(
            ask=ask,
            prefill_id=None if answer.prefill is None else answer.prefill.worker_id,
            decode_id=answer.decode_candidates[0].worker_id if answer.decode_candidates else None,
        )

    async def _renew_later(self) -> None:
        await asyncio.sleep(_RENEW_S)
        await self._renew()

    async def _renew(self) -> None:
        assert self._metrics is not None, "not started"
        report = FrontendReport(
            metrics_text=self._metrics.text(), latencies=self._metrics.recent.take()
        )
        renewal = await self._call(
            lambda c: c.renew.remote(self._frontend_id, self._claimed_at, report)
        )
        if renewal.limits is not None:
            self._limits = renewal.limits
            self._has_limits.set()
        if renewal.wants_resume:
            self._handle = None

    async def _call(
        self,
        call: Callable[[ControllerHandle], Awaitable[T]],
        timeout_s: float = _HANGS_AFTER_S,
    ) -> T:
        """Makes the call of this controller or, should that be dead, of the next. Raises
        UnavailableError, and nothing else that comes of Ray."""
        started_at = self._clock.now()
        while True:
            handle = None
            try:
                handle = await self._controller()
                return await _answer(handle, call, timeout_s)
            except RayActorError as error:
                self._forget(handle)
                if self._clock.now() - started_at > _GIVE_UP_AFTER_S:
                    raise UnavailableError(f"no controller answers: {error}") from error
                await asyncio.sleep(_RETRY_S)
            except RayError as error:
                raise UnavailableError(f"the controller failed: {error}") from error

    async def _controller(self) -> ControllerHandle:
        """Nobody gets a controller before that knows what this frontend has in flight, and what
        waits, in order of arrival: those who wait for it ask again in any order."""
        async with self._making:
            if self._handle is None:
                handle = await asyncio.to_thread(
                    get_or_make_controller, self._config, self._claimed_at
                )
                in_flight = list(self._in_flight.values())
                await _answer(handle, lambda c: c.resume.remote(self._frontend_id, in_flight))
                asks = tuple(ask for r, ask in self._open.items() if r not in self._in_flight)
                told = pack_round(Round(asks=asks))
                await _answer(handle, lambda c: c.exchange.remote(self._frontend_id, told))
                self._handle = handle
            return self._handle

    def _forget(self, handle: ControllerHandle | None) -> None:
        if handle is not None and self._handle is handle:
            logger.warning("the controller is gone: frontend_id=%s", self._frontend_id)
            self._handle = None

    async def _forever(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # this task must go on: requests wait for it
                logger.exception("a call of the controller failed")
                await asyncio.sleep(_RENEW_S)


async def _in_time(call: Awaitable[T], what: str) -> T:
    try:
        return await asyncio.wait_for(call, _SCRAPE_TIMEOUT_S)
    except TimeoutError:
        raise UnavailableError(
            f"the controller has not {what} for {_SCRAPE_TIMEOUT_S:g} s"
        ) from None


async def _answer(
    handle: ControllerHandle,
    call: Callable[[ControllerHandle], Awaitable[T]],
    timeout_s: float = _HANGS_AFTER_S,
) -> T:
    """Raises RayActorError where the controller is dead. One that hangs is killed: it holds the
    name that the next one needs."""
    try:
        return await asyncio.wait_for(call(handle), timeout_s)
    except TimeoutError:
        logger.warning("the controller has not answered for %g s, killed", timeout_s)
        await kill_actor(handle)
        return await call(handle)
