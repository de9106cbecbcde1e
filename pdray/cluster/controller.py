"""The controller as a Ray actor: the control plane with a clock, timers and actor calls.

No method waits for anything but the actors it asks: requests are placed in one go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import ray

from pdray.config import PdrayConfig
from pdray.control_plane import make_control_plane, start_recording
from pdray.core.clock import WallClock
from pdray.core.overview import Overview
from pdray.core.placement import (
    InFlight,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
    Refusal,
    WorkerAddress,
)
from pdray.core.request import WorkerId
from pdray.core.scaling import TimedDecision
from pdray.core.snapshot import Role, WorkerInfo, WorkerState

from .exit import exit_this_actor, force_exit_after
from .handles import ControllerHandle, WorkerHandle
from .heir import Heir
from .introductions import Introductions
from .messages import (
    Claim,
    ControllerStatus,
    FrontendReport,
    Heartbeat,
    HeartbeatReply,
    Renewal,
)
from .names import NAMESPACE, controller_name
from .node_drains import watch_node_drains
from .observations import Observations
from .pool import WorkerPools
from .pool_scaler import PoolScaler
from .rounds import pack_answers, unpack_round
from .slot import WorkerSlot
from .takeover import Takeover
from .telemetry import controller_text, slo_text, worker_texts

logger = logging.getLogger(__name__)

_TICK_S = 0.25
_LOOK_S = 1.0
_FORCE_EXIT_AFTER_S = 60.0
_HEAD_NODE = "node:__internal_head__"
"""A resource that Ray's head has, and no node that scaling or a cloud takes away. An actor that
needs nothing comes to a random node, and keeps that from being drained."""
_MAX_CONCURRENCY = 100_000
_KEPT_FOR_S = 600.0
"""At most, however often what is parked at a retired generation's workers is renewed."""


@dataclass(frozen=True, slots=True)
class _Wait:
    frontend_id: str
    ask: PlacementAsk
    answer: asyncio.Future[Placement | Refusal]


class ControllerActor:
    """Remade by whoever needs it, it finds its workers by their names and hears from every
    frontend what that has in flight. A retired one makes no workers.

    ``claimed_at``, here and below: when who calls it started, see ``Claim``."""

    def __init__(self, config: PdrayConfig, claimed_at: float) -> None:
        self._config = config
        self._claimed_at = claimed_at
        self._clock = WallClock()
        self._me = cast("ControllerHandle", ray.get_runtime_context().current_actor)
        self._control = make_control_plane(config)
        self._recorder = start_recording(config, self._control)
        self._observations = Observations(self._clock.now())
        self._waits: dict[str, _Wait] = {}
        self._frontend_texts: dict[str, bytes] = {}
        self._used_at = self._clock.now()
        self._is_ending = False
        self._idle_pools: set[str] = set()
        self._introductions = Introductions(self._met)
        self._pools = WorkerPools(config, self, self._clock)
        self._scaler = PoolScaler(self._control, self._pools, config.pools)
        application = config.serve.application
        own_name = controller_name(application, config.generation)
        self._takeover = Takeover(application, own_name, self._own_claim, self._pools)
        self._heir = Heir(self._takeover, self._control.fleet)
        self._model_digest: str | None = None
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(watch_node_drains(self._on_node_drains)),
            loop.create_task(self._tick_forever()),
            loop.create_task(self._look_forever()),
        ]

    # For frontends

    async def exchange(self, frontend_id: str, packed_round: bytes) -> bytes:
        """Takes a Round and answers all its asks at once; a Queued request's answer comes through
        ``wait``."""
        told = unpack_round(packed_round)
        now = self._used_at = self._clock.now()
        if told.ended or told.kept:
            self._control.finished(frontend_id, told.ended, now, told.kept)
            self._deliver()
            for request_id in told.ended:
                self._waits.pop(request_id, None)
        answers = self._control.place(frontend_id, told.asks, now) if told.asks else []
        for ask, answer in zip(told.asks, answers, strict=True):
            if isinstance(answer, Queued) and answer.request_id not in self._waits:
                future = asyncio.get_running_loop().create_future()
                self._waits[answer.request_id] = _Wait(frontend_id, ask, future)
        self._deliver()
        return pack_answers(answers)

    async def wait(self, request_id: str) -> Placement | Refusal | None:
        """The answer to a queued request, once there is one; None for one not known here."""
        wait = self._waits.get(request_id)
        if wait is None:
            return None
        while not (await asyncio.wait({wait.answer}, timeout=_LOOK_S))[0]:
            await self._try_heir(wait)
        self._waits.pop(request_id, None)
        return wait.answer.result()

    async def _try_heir(self, wait: _Wait) -> None:
        frontend_id, request_id = wait.frontend_id, wait.ask.request_id
        placement = await self._heir.place(frontend_id, wait.ask, self._model_digest)
        if placement is not None and not wait.answer.done():
            wait.answer.set_result(placement)
            self._control.finished(frontend_id, [request_id], self._clock.now())
            self._deliver()

    async def move(self, frontend_id: str, asks: Sequence[MoveAsk]) -> list[WorkerAddress | None]:
        targets = self._control.move(frontend_id, asks, self._clock.now())
        return await self._heir.find_targets(asks, targets)

    async def renew(self, frontend_id: str, claimed_at: float, report: FrontendReport) -> Renewal:
        """Every second or so, from every frontend."""
        self._claimed_at = max(self._claimed_at, claimed_at)
        now = self._used_at = self._clock.now()
        self._frontend_texts[frontend_id] = report.metrics_text
        self._observations.heard_latencies(report.latencies, now)
        return Renewal(
            wants_resume=not self._control.frontend_seen(frontend_id, now),
            limits=self._control.limits(),
        )

    async def resume(self, frontend_id: str, in_flight: Sequence[InFlight]) -> None:
        self._control.resume(frontend_id, in_flight, self._clock.now())
        self._deliver()

    async def frontend_gone(self, frontend_id: str) -> None:
        self._frontend_texts.pop(frontend_id, None)
        self._control.frontend_gone(frontend_id, self._clock.now())
        self._deliver()

    async def metrics(self, frontend_id: str) -> list[bytes]:
        """All expositions but that of the frontend that asks."""
        frontends = [text for fid, text in self._frontend_texts.items() if fid != frontend_id]
        workers = await worker_texts(self._pools.ready())
        own = [controller_text(await self.status()), slo_text(self._config.slo)]
        return [*own, *workers, *frontends]

    # For workers

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        slot = self._pools.find(heartbeat.pool, heartbeat.index)
        if slot is None or slot.is_over:
            return HeartbeatReply(is_wanted=False, knows_prefixes=False, role=None)
        slot.heard(heartbeat.progress, heartbeat.node_id)
        now = self._clock.now()
        knows_prefixes, role = True, None
        if heartbeat.snapshot is not None:
            worker_id = heartbeat.snapshot.worker_id
            if heartbeat.prefixes is not None:
                knows_prefixes = self._control.prefixes_told(worker_id, heartbeat.prefixes, now)
            self._control.snapshot(heartbeat.snapshot, now)
            self._observations.heard_snapshot(heartbeat.pool, heartbeat.snapshot, now)
            self._deliver()
            if heartbeat.snapshot.state is WorkerState.DRAINING:
                self._take_away(slot, self._config.controller.termination_timeout_s)
            worker = self._control.fleet.get(worker_id)
            role = None if worker is None else worker.info.role
        return HeartbeatReply(is_wanted=True, knows_prefixes=knows_prefixes, role=role)

    # For launchers and other generations

    async def hold(self, claimed_at: float) -> None:
        """Keeps an application that has no frontend yet from ending itself."""
        self._claimed_at = max(self._claimed_at, claimed_at)
        self._used_at = self._clock.now()

    async def status(self) -> ControllerStatus:
        return ControllerStatus(
            application=self._config.serve.application,
            generation=self._config.generation,
            is_retired=self._takeover.is_retired,
            workers=self._pools.statuses(),
            frontend_ids=tuple(self._control.frontend_ids),
            num_queued=self._control.num_queued,
            num_in_flight=self._control.num_in_flight,
            max_in_flight=self._control.max_in_flight,
            num_placed_by_how=self._control.num_placed_by_how,
            desired_workers=self._control.desired_workers,
            idle_pools=tuple(self._control.idle_pools(self._clock.now())),
            can_place=self._control.can_place,
            layout_mismatch=self._control.layout_mismatch(),
        )

    async def overview(self) -> Overview:
        now = self._clock.now()
        status, scaling = await self.status(), self._scaler.newest
        return self._observations.overview(self._config, self._control, status, scaling, now)

    async def scaling(self) -> tuple[TimedDecision, ...]:
        """The last decisions of this life."""
        return self._scaler.decisions

    async def claim(self) -> Claim:
        return self._own_claim()

    async def give_up_worker(self) -> None:
        """Drains and ends one worker, if one is left."""
        await self._pools.give_up_one()

    async def find_targets(
        self, wanted: Sequence[tuple[WorkerInfo | None, MoveAsk]]
    ) -> list[WorkerAddress | None]:
        """Who could go on with another generation's decodes, on its workers or on ours."""
        return [self._control.find_target(source, ask) for source, ask in wanted]

    async def place_for(
        self, frontend_id: str, ask: PlacementAsk, model_digest: str
    ) -> Placement | None:
        """Another generation's request, of the same model; asked again while it is queued."""
        if model_digest != self._model_digest:
            return None
        (answer,) = self._control.place(frontend_id, [ask], self._clock.now())
        self._deliver()
        return answer if isinstance(answer, Placement) else None

    async def shutdown(self) -> None:
        """Ends all workers, then itself. Does not return: the actor dies."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await self._pools.stop()
        for frontend_id in self._control.frontend_ids:
            self._control.frontend_gone(frontend_id, self._clock.now())
        self._deliver()
        if self._recorder is not None:
            self._recorder.close()
        exit_this_actor()

    # What becomes of workers: called by their slots

    def addresses(self) -> Sequence[WorkerAddress]:
        """Of workers that a new one may have its model from."""
        return self._introductions.addresses()

    async def worker_started(self, info: WorkerInfo, handle: WorkerHandle) -> None:
        await self._introductions.introduce(info, handle)

    def worker_joined(self, info: WorkerInfo) -> None:
        logger.info("worker joined: worker_id=%s started in %s", info.worker_id, info.startup)
        self._model_digest = info.model_digest
        self._control.worker_joined(info, self._clock.now())
        if mismatch := self._control.layout_mismatch():
            logger.error("%s", mismatch)
        self._deliver()

    def worker_draining(self, worker_id: WorkerId) -> bool:
        self._control.worker_draining(worker_id, self._clock.now())
        self._deliver()
        return bool(self._control.fleet.ready(Role.PREFILL))

    def _on_node_drains(self, drains: Mapping[str, float | None]) -> None:
        for node_id, left_s in drains.items():
            for slot in self._pools.on_node(node_id):
                default_s = self._config.controller.drain_timeout_s
                self._take_away(slot, default_s if left_s is None else left_s)

    def _take_away(self, slot: WorkerSlot, timeout_s: float) -> None:
        """Its worker has to go: the next one is made while that drains."""
        if slot.is_wanted:
            logger.warning("worker is taken away: %s %s in %g s", slot.pool, slot.index, timeout_s)
            self._pools.take_away(slot, timeout_s)

    def worker_left(self, worker_id: WorkerId) -> None:
        self._introductions.forget(worker_id)
        self._observations.worker_left(worker_id)
        self._control.worker_left(worker_id, self._clock.now())
        self._deliver()

    def _met(self, one: WorkerId, other: WorkerId, failure: str | None) -> None:
        self._control.pair_met(one, other, failure, self._clock.now())
        self._deliver()

    async def _tick_forever(self) -> None:
        while not self._is_ending:
            await asyncio.sleep(_TICK_S)
            try:
                self._tick()
            except Exception:  # the timers must go on: all else depends on them
                logger.exception("a tick of the controller failed")

    def _tick(self) -> None:
        now = self._clock.now()
        self._control.tick(now)
        for flip in self._control.take_role_flips():
            role = str(flip.role.name).lower()
            logger.info("role: worker_id=%s is %s now: %s", flip.worker_id, role, flip.reason)
        self._tell_idle_pools(now)
        if not self._takeover.is_retired:
            self._scaler.look(now)
        self._deliver()
        frontend_ids = set(self._control.frontend_ids)
        self._waits = {r: w for r, w in self._waits.items() if w.frontend_id in frontend_ids}
        for frontend_id in self._frontend_texts.keys() - frontend_ids:
            del self._frontend_texts[frontend_id]
        unused_s = now - self._used_at
        # What a retired one's workers have parked may be claimed by frontends of others.
        is_kept = self._takeover.is_retired and self._control.holds_kv
        unused_exit_s = self._config.controller.unused_exit_s
        if unused_s > unused_exit_s + (_KEPT_FOR_S if is_kept else 0.0):
            self._end_myself(f"unused for {unused_s:.0f} s")
        elif self._takeover.is_retired and not frontend_ids and not is_kept:
            self._end_myself("retired, and its last frontend and its last lease are gone")

    def _tell_idle_pools(self, now: float) -> None:
        idle = self._control.idle_pools(now)
        for pool in set(idle) - self._idle_pools:
            by_how = self._control.num_placed_by_how
            logger.warning("pool %s gets no requests: placed so far %s", pool, by_how)
        self._idle_pools = set(idle)

    def _end_myself(self, reason: str) -> None:
        logger.warning("controller ends: generation=%s %s", self._config.generation, reason)
        self._is_ending = True
        force_exit_after(_FORCE_EXIT_AFTER_S)
        self._me.shutdown.remote()

    async def _look_forever(self) -> None:
        has_adopted = False
        while True:
            try:
                if not has_adopted:
                    self._scaler.found(await self._pools.adopt_living(), self._clock.now())
                    has_adopted = True
                await self._takeover.look()
            except Exception:  # workers are made by it: it must go on
                logger.exception("looking for other generations failed")
            await asyncio.sleep(_LOOK_S)

    def _own_claim(self) -> Claim:
        return Claim(claimed_at=self._claimed_at, generation=self._config.generation)

    def _deliver(self) -> None:
        for decision in self._control.take_decisions():
            wait = self._waits.get(decision.request_id)
            if wait is not None and not wait.answer.done():
                wait.answer.set_result(decision)


def get_or_make_controller(config: PdrayConfig, claimed_at: float) -> ControllerHandle:
    """This generation's one controller. Blocks for some milliseconds. The handle may be that
    of one that is about to end: calls fail then, and another can be made."""
    handle = (
        ray.remote(ControllerActor)
        .options(
            name=controller_name(config.serve.application, config.generation),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,
            max_concurrency=_MAX_CONCURRENCY,
            num_cpus=0,
            resources={_HEAD_NODE: 0.001},
        )
        .remote(config, claimed_at)
    )
    return cast("ControllerHandle", handle)
