"""The whole data path in one process, without Ray: for tests, and to look at it closely.

Real workers, real links, the real control plane; only processes and actors are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pdray.config import PdrayConfig
from pdray.control.controller import ControlPlane
from pdray.control_plane import make_control_plane, start_recording
from pdray.core.clock import WallClock
from pdray.core.cluster_secret import newest_secret
from pdray.core.errors import UnavailableError
from pdray.core.placement import (
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    ServingLimits,
    WorkerAddress,
)
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo
from pdray.frontend.frontend import Frontend
from pdray.worker.config import WorkerConfig
from pdray.worker.parked_table import ParkingLimits
from pdray.worker.worker import Worker, build_worker

SNAPSHOT_S = 0.05


class LocalController:
    """A ControlPlane with the clock and the timers that the controller actor gives it elsewhere;
    the ControllerClient of one frontend."""

    def __init__(self, frontend_id: str, plane: ControlPlane) -> None:
        self._frontend_id = frontend_id
        self._plane = plane
        self._clock = WallClock()
        self._waiting: dict[str, asyncio.Future[Placement | Refusal]] = {}

    async def place(self, asks: Sequence[PlacementAsk]) -> list[Placement | Queued | Refusal]:
        answers = self._plane.place(self._frontend_id, asks, self._clock.now())
        loop = asyncio.get_running_loop()
        for answer in answers:
            if isinstance(answer, Queued):
                self._waiting.setdefault(answer.request_id, loop.create_future())
        self._deliver()
        return answers

    async def wait(self, request_id: str) -> Placement | Refusal:
        try:
            return await self._waiting[request_id]
        finally:
            self._waiting.pop(request_id, None)

    async def move(self, asks: Sequence[MoveAsk]) -> list[WorkerAddress | None]:
        return self._plane.move(self._frontend_id, asks, self._clock.now())

    def finished(self, request_ids: Sequence[str], kept: Sequence[KeptPrefix] = ()) -> None:
        self._plane.finished(self._frontend_id, request_ids, self._clock.now(), kept)
        self._deliver()

    async def limits(self) -> ServingLimits:
        limits = self._plane.limits()
        if limits is None:
            raise UnavailableError("no prefill and decode worker are up")
        return limits

    def tick(self) -> None:
        """What time alone brings about, and the answers to what was queued."""
        now = self._clock.now()
        self._plane.frontend_seen(self._frontend_id, now)
        self._plane.tick(now)
        self._deliver()

    def _deliver(self) -> None:
        for decision in self._plane.take_decisions():
            waiting = self._waiting.get(decision.request_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(decision)


class LocalCluster:
    """``async with LocalCluster(config, model_path) as cluster: cluster.frontend.generate(...)``.

    Every worker loads the model for itself, as it would elsewhere.
    """

    def __init__(
        self, config: PdrayConfig, model_path: Path, *, frontend_id: str = "local"
    ) -> None:
        """Two clusters whose workers meet need a ``frontend_id`` each."""
        self.config = config
        self.plane = make_control_plane(config)
        self._recorder = start_recording(config, self.plane)
        self.controller = LocalController(frontend_id, self.plane)
        self.frontend = Frontend(
            frontend_id,
            self.controller,
            max_unread_tokens=config.serve.slow_reader_tokens,
            patience_s=config.controller.queue_timeout_s,
        )
        self.workers = [
            build_worker(worker_config)
            for worker_config in local_worker_configs(config, model_path)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def workers_of(self, pool: str) -> list[Worker]:
        return [worker for worker in self.workers if worker.config.pool == pool]

    async def __aenter__(self) -> LocalCluster:
        now = WallClock().now()
        infos = [await worker.start() for worker in self.workers]
        for worker, info in zip(self.workers, infos, strict=True):
            await self._introduce(worker, infos)
            self.plane.worker_joined(info, now)
            self._tasks.append(asyncio.create_task(self._watch(worker)))
        self._tasks.append(asyncio.create_task(self._observe()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self.frontend.stop()
        for worker in self.workers:
            await worker.stop()
        if self._recorder is not None:
            self._recorder.close()

    async def _introduce(self, worker: Worker, infos: Sequence[WorkerInfo]) -> None:
        if Role.PREFILL in worker.config.role:
            peers = [each.address for each in infos if each.worker_id != worker.config.worker_id]
            for peer_id, failure in (await worker.meet(peers)).items():
                self.plane.pair_met(worker.config.worker_id, peer_id, failure, WallClock().now())

    async def _watch(self, worker: Worker) -> None:
        """A crashed worker leaves, and its requests fail, as where its process ends."""
        await worker.crashed()
        self.plane.worker_left(worker.config.worker_id, WallClock().now())
        await worker.stop()

    async def _observe(self) -> None:
        while True:
            for worker in self.workers:
                now = WallClock().now()
                self.plane.snapshot(worker.snapshot(), now)
                report = worker.prefix_report()
                worker_id = worker.config.worker_id
                if report is not None and not self.plane.prefixes_told(worker_id, report, now):
                    worker.restart_prefix_reports()
            self.controller.tick()
            await asyncio.sleep(SNAPSHOT_S)


def local_worker_configs(config: PdrayConfig, model_path: Path) -> list[WorkerConfig]:
    """One for each replica of each pool, on the first of the pool's node groups."""
    return [
        WorkerConfig(
            worker_id=WorkerId(f"{pool_name}-{index}-local"),
            pool=pool_name,
            node_group=pool.node_groups[0],
            role=Role.parse(pool.role),
            host="127.0.0.1",
            model_path=model_path,
            engine=config.engine_config(pool_name, pool.node_groups[0], model_path),
            transport=config.transfer.transport,
            lease_s=config.transfer.lease_s,
            secret=newest_secret(config.handles.secret_file),
            parking=ParkingLimits(
                lease_s=config.handles.lease_s, max_fraction=config.handles.max_fraction
            ),
            tiers=config.tier_config(pool_name),
        )
        for pool_name, pool in config.pools.items()
        for index in range(pool.first_replicas)
    ]
