"""The worker as a Ray actor: a thin shell that starts it, reports it and ends it."""

from __future__ import annotations

import asyncio
import importlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import ray
from ray.exceptions import RayError

from pdray.core.clock import WallClock
from pdray.core.errors import ConfigError, UnsupportedModelError
from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo
from pdray.core.startup import StartupWatch

from .exit import exit_this_actor, force_exit_after
from .handles import ControllerHandle, WorkerHandle
from .messages import Heartbeat, StartFailure, WorkerSpec
from .names import controller_name, find_controller
from .termination import Termination

if TYPE_CHECKING:
    from pdray.worker.memory_files import MemoryFiles
    from pdray.worker.worker import Worker

T = TypeVar("T")

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 0.25
_HEARTBEAT_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 10.0
_FORCE_EXIT_AFTER_S = 30.0


class WorkerActor:
    """Loads the model in ``start``, not when it is made: until then a pending call means that
    Ray has no room for it."""

    _termination: Termination | None = None

    def __new__(cls, *args: object) -> WorkerActor:
        """Ray makes the object in the main thread, and all else of it runs in another: signals
        can be taken here alone. Who asks for an actor makes an object, too, in another thread."""
        actor = super().__new__(cls)
        if threading.current_thread() is threading.main_thread():
            actor._termination = Termination()
        return actor

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._clock = WallClock()
        self._me = cast("WorkerHandle", ray.get_runtime_context().current_actor)
        self._worker: Worker | None = None
        # For as long as the worker: its tokenizer is in it.
        self._model_copy: MemoryFiles | None = None
        self._node_id: str = ray.get_runtime_context().get_node_id()
        self._progress = "process started"
        self._role: Role | None = None
        self._starting: asyncio.Task[WorkerInfo | StartFailure] | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heartbeats = asyncio.get_running_loop().create_task(self._send_heartbeats())
        self._leaving: asyncio.Task[None] | None = None
        assert self._termination is not None, "not made in the main thread"
        self._termination.tell(self._leave_soon)
        self._renewed_at = self._clock.now()
        # A thread, as a worker whose event loop hangs must end as well.
        threading.Thread(target=self._watch_lease, name="lease-watch", daemon=True).start()

    async def ping(self) -> None:
        """Answers once the process runs."""

    async def start(
        self, process_s: float, peers: Sequence[WorkerAddress]
    ) -> WorkerInfo | StartFailure:
        """Makes the worker ready, ``process_s`` after its process was asked for, with the model of
        one of the ``peers`` where that is faster. Called again, gives the same answer, but for a
        role that it has got since."""
        if self._starting is None:
            starting = self._start(StartupWatch(self._clock, process_s), peers)
            self._starting = asyncio.get_running_loop().create_task(starting)
        await self._first_of(self._starting)
        if self._starting.done():
            started = self._starting.result()
            if self._role is not None and isinstance(started, WorkerInfo):
                return replace(started, role=self._role)
            return started
        return StartFailure(reason=self._ended.result(), is_final=False)

    async def join(self) -> str:
        """Returns why the worker ended, when it ends; the caller sees a death as an error."""
        return await asyncio.shield(self._ended)

    async def meet(self, peers: Sequence[WorkerAddress]) -> dict[WorkerId, str]:
        """Those of the peers that this worker can't work with, and why."""
        if self._worker is None:
            return {peer.worker_id: "the worker has not started" for peer in peers}
        return await self._worker.meet(peers)

    async def metrics_text(self) -> bytes:
        return b"" if self._worker is None else self._worker.metrics_text()

    async def drain(self, timeout_s: float, gives_back: bool) -> None:
        """Takes no new work; returns when the last request is over, or elsewhere, or when the time
        is. With ``gives_back`` others do the prompts that have not begun."""
        if self._worker is not None:
            draining = self._worker.drain(timeout_s, gives_back=gives_back)
            await self._first_of(asyncio.get_running_loop().create_task(draining))

    async def stop(self, reason: str) -> None:
        """Ends this process; what still runs is lost. Does not return: the actor dies."""
        force_exit_after(_FORCE_EXIT_AFTER_S)
        self._progress = reason
        if self._worker is not None:
            try:
                await asyncio.wait_for(self._worker.stop(), _STOP_TIMEOUT_S)
            except TimeoutError:
                logger.warning("worker does not stop: worker_id=%s", self._spec.worker_id)
            except Exception:  # it ends all the same
                logger.exception("worker stops badly: worker_id=%s", self._spec.worker_id)
        if self._model_copy is not None:
            self._model_copy.close()
        if not self._ended.done():
            self._ended.set_result(reason)
        self._heartbeats.cancel()
        exit_this_actor()

    async def _first_of(self, task: asyncio.Task[T]) -> None:
        """Returns when the task is done or the worker ended: Ray lets calls in progress finish
        before an actor may exit."""
        either: list[asyncio.Future[T] | asyncio.Future[str]] = [task, self._ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _start(
        self, watch: StartupWatch, peers: Sequence[WorkerAddress]
    ) -> WorkerInfo | StartFailure:
        try:
            self._model_copy = await self._import_and_copy(peers)
            watch.imported()
            worker = await asyncio.to_thread(self._build, self._model_copy, watch)
            info = await worker.start()
            watch.warmed_up()
        except (ConfigError, UnsupportedModelError) as error:
            return StartFailure(reason=str(error), is_final=True)
        except Exception as error:  # whatever it is, the reason must reach the user
            logger.exception("worker does not start: worker_id=%s", self._spec.worker_id)
            return StartFailure(reason=f"{type(error).__name__}: {error}", is_final=False)
        self._worker = worker
        self._progress = "ready"
        self._crash_watch = asyncio.get_running_loop().create_task(self._watch_engine(worker))
        return replace(info, startup=watch.times())

    async def _import_and_copy(self, peers: Sequence[WorkerAddress]) -> MemoryFiles | None:
        """Imports what takes seconds of computing, while the model is read: into the page cache, or
        out of a peer."""
        from pdray.engine.checkpoint import open_checkpoint
        from pdray.model_source import find_model
        from pdray.worker.model_copy import copy_model

        spec, config = self._spec, self._spec.config
        own = await asyncio.to_thread(find_model, config.model)
        self._set_progress("importing torch and transformers")
        importing = asyncio.to_thread(importlib.import_module, "pdray.worker.worker")
        imported = asyncio.get_running_loop().create_task(importing)
        copy = await copy_model(
            config.transfer.weights,
            own,
            peers,
            reader_id=f"{spec.worker_id}.files",
            transport=config.transfer.transport,
        )
        if own is not None and copy is None:
            open_checkpoint(own).read_ahead()
        await imported
        return copy

    def _build(self, copy: MemoryFiles | None, watch: StartupWatch) -> Worker:
        from pdray.core.cluster_secret import newest_secret
        from pdray.model_source import resolve_model
        from pdray.worker.config import WorkerConfig
        from pdray.worker.parked_table import ParkingLimits
        from pdray.worker.worker import build_worker

        spec, config = self._spec, self._spec.config
        if copy is not None:
            model_path = copy.model_path
        else:
            model_path = resolve_model(config.model, self._set_progress)
        self._set_progress(f"loading {config.model_name}")

        def loaded() -> None:
            watch.loaded()
            if copy is not None:
                copy.release_weights()

        return build_worker(
            WorkerConfig(
                worker_id=spec.worker_id,
                pool=spec.pool,
                node_group=spec.node_group,
                role=Role.parse(config.pools[spec.pool].role),
                host=ray.util.get_node_ip_address(),
                model_path=model_path,
                engine=config.engine_config(spec.pool, spec.node_group, model_path),
                transport=config.transfer.transport,
                lease_s=config.transfer.lease_s,
                secret=newest_secret(config.handles.secret_file),
                parking=ParkingLimits(
                    lease_s=config.handles.lease_s, max_fraction=config.handles.max_fraction
                ),
                tiers=config.tier_config(spec.pool),
            ),
            loaded,
        )

    def _leave_soon(self) -> None:
        """The process was told to end."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        """The controller hears of it with the next heartbeat, and makes the next one."""
        logger.warning("worker leaves: worker_id=%s SIGTERM", self._spec.worker_id)
        self._progress = "drains: its process was told to end"
        await self.drain(self._spec.config.controller.termination_timeout_s, gives_back=False)
        self._end_myself("its process was told to end")

    def _set_progress(self, text: str) -> None:
        self._progress = text

    async def _watch_engine(self, worker: Worker) -> None:
        error = await worker.crashed()
        logger.error("engine crashed: worker_id=%s", self._spec.worker_id, exc_info=error)
        self._end_myself(f"the engine crashed: {type(error).__name__}: {error}")

    def _watch_lease(self) -> None:
        """Runs in its own thread for as long as somebody wants this worker."""
        lease_s = self._spec.config.controller.worker_lease_s
        tick = threading.Event()
        while self._clock.now() - self._renewed_at <= lease_s:
            tick.wait(min(1.0, lease_s / 4))
        self._end_myself(f"no controller renewed this worker for {lease_s:g} s")

    def _end_myself(self, reason: str) -> None:
        logger.warning("worker ends: worker_id=%s reason=%s", self._spec.worker_id, reason)
        force_exit_after(_FORCE_EXIT_AFTER_S)
        self._me.stop.remote(reason)

    async def _send_heartbeats(self) -> None:
        """Runs until the actor ends; each answered heartbeat renews the lease."""
        spec = self._spec
        name = controller_name(spec.config.serve.application, spec.config.generation)
        controller: ControllerHandle | None = None
        while True:
            try:
                if controller is None:
                    controller = await find_controller(name)
                if controller is not None and await self._send_heartbeat(controller):
                    self._renewed_at = self._clock.now()
            except (RayError, TimeoutError) as error:
                logger.info("no controller: worker_id=%s %s", spec.worker_id, type(error).__name__)
                controller = None
                # What was under way may not have arrived, and the next one knows nothing.
                self._restart_prefix_reports()
            await asyncio.sleep(_HEARTBEAT_S)

    async def _send_heartbeat(self, controller: ControllerHandle) -> bool:
        """Whether the controller wants this worker."""
        worker = self._worker
        heartbeat = Heartbeat(
            pool=self._spec.pool,
            index=self._spec.index,
            node_id=self._node_id,
            progress=self._progress,
            snapshot=None if worker is None else worker.snapshot(),
            prefixes=None if worker is None else worker.prefix_report(),
        )
        reply = await asyncio.wait_for(controller.heartbeat.remote(heartbeat), _HEARTBEAT_TIMEOUT_S)
        if not reply.knows_prefixes:
            self._restart_prefix_reports()
        self._role = reply.role or self._role
        return reply.is_wanted

    def _restart_prefix_reports(self) -> None:
        if self._worker is not None:
            self._worker.restart_prefix_reports()
