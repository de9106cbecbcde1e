"""One place in a pool, and the worker that it keeps alive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError

from pdray.config import PdrayConfig
from pdray.core.clock import Clock
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo, WorkerState

from .actors import WorkerActor
from .handles import WorkerHandle
from .messages import StartFailure, WorkerSpec, WorkerStatus
from .names import NAMESPACE, find_worker, kill_actor, worker_name
from .node_groups import GroupChoice, worker_resources
from .silence import Silence

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LONG_LIFE_S = 60.0
_HOPELESS_AFTER_FAILURES = 3
_MAX_BACK_OFF_S = 60.0
_STOP_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 5.0
_MAX_CONCURRENCY = 1000
_LOOK_S = 0.5
_LOOK_AGAIN_S = 1.0


class WorkerEvents(Protocol):
    """Who is told what becomes of workers."""

    def addresses(self) -> Sequence[WorkerAddress]: ...
    async def worker_started(self, info: WorkerInfo, handle: WorkerHandle) -> None: ...
    def worker_joined(self, info: WorkerInfo) -> None: ...
    def worker_draining(self, worker_id: WorkerId) -> bool:
        """Whether others could do its prompts."""

    def worker_left(self, worker_id: WorkerId) -> None: ...


class WorkerSlot:
    """Makes a worker, waits for its end, makes the next one; adopts one that lives already.

    Only adopts while ``may_make`` is not set. A worker that dies soon after its start is followed
    by the next one after a pause that doubles. One that is silent for ``worker_lease_s`` is killed.
    """

    def __init__(
        self,
        config: PdrayConfig,
        pool: str,
        index: int,
        node_groups: tuple[str, ...],
        events: WorkerEvents,
        clock: Clock,
        may_make: asyncio.Event,
    ) -> None:
        self.pool = pool
        self.index = index
        self.progress = ""
        self.is_wanted = True
        self.pending_since: float | None = None
        self.node_id: str | None = None
        self.num_failed_starts = 0
        self.started: tuple[float, float] | None = None
        """When the last worker here joined, and how long its start had taken."""
        self._config = config
        self._events = events
        self._clock = clock
        self._may_make = may_make
        self._silence = Silence(clock.now())
        self._groups = GroupChoice(node_groups)
        self._info: WorkerInfo | None = None
        self._state = WorkerState.STARTING
        self._num_failures = 0
        self._last_failure: StartFailure | None = None
        self._handle: WorkerHandle | None = None
        self._task = asyncio.get_running_loop().create_task(self._keep_alive())

    @property
    def is_ready(self) -> bool:
        return self._state is WorkerState.READY

    @property
    def worker_id(self) -> WorkerId | None:
        """None where no worker has joined."""
        return None if self._info is None else self._info.worker_id

    @property
    def handle(self) -> WorkerHandle | None:
        """The ready worker's actor."""
        return self._handle if self.is_ready else None

    def status(self) -> WorkerStatus:
        failure = self._last_failure
        return WorkerStatus(
            pool=self.pool,
            index=self.index,
            role=Role.parse(self._config.pools[self.pool].role),
            node_group=self._info.node_group if self._info else self._groups.group,
            state=self._state,
            worker_id=self._info.worker_id if self._info else None,
            progress=self.progress,
            num_failures=self._num_failures,
            last_failure=failure.reason if failure else None,
            is_hopeless=failure is not None
            and (failure.is_final or self._num_failures >= _HOPELESS_AFTER_FAILURES),
            startup=self._info.startup if self._info else None,
        )

    @property
    def is_over(self) -> bool:
        return self._state is WorkerState.STOPPED

    def heard(self, progress: str, node_id: str) -> None:
        """Its worker has sent a heartbeat."""
        self.progress, self.node_id = progress, node_id
        self._silence.end(self._clock.now())

    async def retire(self, *, drain: bool, timeout_s: float | None = None) -> None:
        """Ends the worker, with ``drain`` once nothing runs there any more, or after ``timeout_s``,
        by the config where that is None; no other follows it."""
        self.is_wanted = False
        handle, info = self._handle, self._info
        has_process = self.pending_since is None
        if drain and handle is not None and info is not None:
            self._state = WorkerState.DRAINING
            gives_back = self._events.worker_draining(info.worker_id)
            if timeout_s is None:
                # What is parked there is not renewed any more, but may be claimed to its end.
                timeout_s = self._config.controller.drain_timeout_s + self._config.handles.lease_s
            drained = handle.drain.remote(timeout_s, gives_back)
            await self._ended(drained, timeout_s + _ANSWER_TIMEOUT_S)
        self._task.cancel()
        await asyncio.wait({self._task})
        handle = handle or await find_worker(self._name)
        if handle is not None:
            if has_process:
                await self._ended(handle.stop.remote("no longer wanted"), _STOP_TIMEOUT_S)
            await kill_actor(handle)  # nothing happens where it has stopped
        self._state = WorkerState.STOPPED

    async def _ended(self, call: Awaitable[None], timeout_s: float) -> None:
        try:
            await asyncio.wait_for(call, timeout_s)
        except RayActorError:
            logger.info("worker has gone: %s", self._name)
        except (RayError, TimeoutError) as error:
            logger.warning("worker does not end as asked: %s %s", self._name, error)

    @property
    def _name(self) -> str:
        config = self._config
        return worker_name(config.serve.application, config.generation, self.pool, self.index)

    async def _keep_alive(self) -> None:
        while self.is_wanted:
            try:
                failure = await self._live_once()
            except RayError as error:
                failure = StartFailure(reason=_reason_of(error), is_final=False)
            except Exception as error:  # a place must not stay empty, whatever happens
                logger.exception("worker cannot be made: %s", self._name)
                failure = StartFailure(reason=f"{type(error).__name__}: {error}", is_final=False)
            finally:
                has_joined = self._info is not None
                self._leave()
            if failure is not None and not has_joined:
                self.num_failed_starts += 1
            if failure is not None and self.is_wanted:
                await self._back_off(failure)

    async def _live_once(self) -> StartFailure | None:
        """One worker's life; what it ended of, or None where it is time for another group."""
        asked_at = self._clock.now()
        self._handle = handle = await self._get_or_make()
        if handle is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._may_make.wait(), _LOOK_AGAIN_S)
            return None
        if not await self._is_scheduled(handle):
            await kill_actor(handle)
            self._groups.next()
            return None
        try:
            process_s = self._clock.now() - asked_at
            starting = handle.start.remote(process_s, self._events.addresses())
            answer = await self._while_heard(starting)
            if isinstance(answer, WorkerInfo):
                await self._meet_others(answer, handle)
                reason = await self._live(handle)
                answer = StartFailure(reason=reason, is_final=False)
        except TimeoutError as error:
            answer = StartFailure(reason=str(error), is_final=False)
        await kill_actor(handle)
        return answer

    async def _live(self, handle: WorkerHandle) -> str:
        """Why the worker ended, as its own words have it."""
        joined_at = self._clock.now()
        try:
            return await self._while_heard(handle.join.remote())
        finally:
            self._groups.restart()
            if self._clock.now() - joined_at > _LONG_LIFE_S:
                self._num_failures = 0

    async def _while_heard(self, call: Awaitable[T]) -> T:
        """Awaits a worker's answer; raises TimeoutError when its heartbeats stay away."""
        lease_s = self._config.controller.worker_lease_s
        self._silence.end(self._clock.now())
        answer = asyncio.ensure_future(call)
        try:
            while not answer.done():
                if self._silence.look(self._clock.now()) > lease_s:
                    raise TimeoutError(f"it hangs: no heartbeat for {lease_s:g} s")
                await asyncio.wait({answer}, timeout=_LOOK_S)
        finally:
            answer.cancel()
        return answer.result()

    async def _get_or_make(self) -> WorkerHandle | None:
        if not self._may_make.is_set():
            return await find_worker(self._name)
        group = self._groups.group
        # Wall time, as no counter outlives the controller: each life must have its own id.
        incarnation = f"{time.time_ns() // 1_000_000:x}"
        application = self._config.serve.application
        spec = WorkerSpec(
            config=self._config,
            worker_id=WorkerId(f"{application}-{self.pool}-{self.index}-{incarnation}"),
            pool=self.pool,
            index=self.index,
            node_group=group,
        )
        resources = worker_resources(self._config.node_groups[group])
        self.progress = f"waiting for room on {group}"
        handle = await asyncio.to_thread(
            ray.remote(WorkerActor)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=0,
                max_concurrency=_MAX_CONCURRENCY,
                num_cpus=resources.num_cpus,
                num_gpus=resources.num_gpus,
                resources=resources.resources,
                accelerator_type=resources.accelerator_type,
                label_selector=resources.label_selector,
            )
            .remote,
            spec,
        )
        return cast("WorkerHandle", handle)

    async def _is_scheduled(self, handle: WorkerHandle) -> bool:
        self.pending_since = self._clock.now()
        try:
            await asyncio.wait_for(handle.ping.remote(), self._groups.patience_s)
        except TimeoutError:
            return False
        finally:
            self.pending_since = None
        return True

    async def _meet_others(self, info: WorkerInfo, handle: WorkerHandle) -> None:
        """And then join."""
        started_at = self._clock.now()
        await self._events.worker_started(info, handle)
        if info.startup is not None:
            meeting_s = self._clock.now() - started_at
            info = replace(info, startup=replace(info.startup, meeting_s=meeting_s))
        self._join(info)

    def _join(self, info: WorkerInfo) -> None:
        self._info = info
        self._state = WorkerState.READY
        self._last_failure = None
        if info.startup is not None:
            self.started = (self._clock.now(), info.startup.total_s)
        self._events.worker_joined(info)

    def _leave(self) -> None:
        """The worker, if there was one, takes no more requests."""
        if self._info is not None:
            self._events.worker_left(self._info.worker_id)
        self._info = None
        self._handle = None
        self.node_id = None
        self._state = WorkerState.STARTING

    async def _back_off(self, failure: StartFailure) -> None:
        self._num_failures += 1
        self._last_failure = failure
        pause_s = min(2.0 ** (self._num_failures - 1), _MAX_BACK_OFF_S)
        logger.warning(
            "worker lost: %s failures=%s next_in_s=%s: %s",
            *(self._name, self._num_failures, pause_s, failure.reason),
        )
        self.progress = f"next try in {pause_s:g} s"
        await asyncio.sleep(pause_s)


def _reason_of(error: RayError) -> str:
    """Ray's own words for an actor's end, less the lines that only name the actor."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("\t")]
    return " ".join(lines)[:500]
