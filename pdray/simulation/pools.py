"""The workers of all pools over time: started, ready, drained, gone; and what that costs."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts, PoolTarget
from pdray.core.snapshot import WorkerInfo, WorkerState

from .profile import Profile, WorkerProfile
from .scaler import PoolView
from .scenario import GroupPlan, PoolPlan
from .timeline import Timeline, Timer
from .worker import SimulatedWorker

MakeWorker = Callable[[WorkerInfo, WorkerProfile], SimulatedWorker]


class PoolEvents(Protocol):
    """What becomes of workers: told in the middle of calls."""

    def joined(self, worker: SimulatedWorker) -> None: ...

    def draining(self, worker: SimulatedWorker) -> None: ...

    def left(self, worker: SimulatedWorker) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """From ``at`` on, until the pool's next one."""

    at: float
    pool: str
    num_wanted: int
    num_ready: int
    num_starting: int
    num_draining: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of a pool's workers on one node group, from the decision to start each until it is gone."""

    pool: str
    node_group: str
    worker_s: float
    gpu_s: float
    cost: float


@dataclass(slots=True, eq=False)
class Place:
    """A worker's, from its start to its end."""

    profile: WorkerProfile
    info: WorkerInfo
    started_at: float
    state: WorkerState = WorkerState.STARTING
    ready: Timer | None = None
    worker: SimulatedWorker | None = None
    ended_at: float | None = None


class SimulatedPools:
    """``set_desired`` says how many workers there should be, those that start among them; whoever
    drains is none of them."""

    def __init__(
        self,
        plans: Iterable[PoolPlan],
        profile: Profile,
        timeline: Timeline,
        rng: random.Random,
        make_worker: MakeWorker,
        events: PoolEvents,
    ) -> None:
        """Raises ConfigError where the profile has not all that is planned."""
        self.plans = {plan.name: plan for plan in plans}
        self._profiles = {
            (plan.name, group.node_group): profile.worker(plan.name, group.node_group)
            for plan in self.plans.values()
            for group in plan.groups
        }
        self._timeline = timeline
        self._rng = rng
        self._make_worker = make_worker
        self._events = events
        self._living: dict[str, list[Place]] = {name: [] for name in self.plans}
        self._wanted = dict.fromkeys(self.plans, 0)
        self._leave_first: dict[str, tuple[WorkerId, ...]] = dict.fromkeys(self.plans, ())
        self._startup_s: dict[str, float | None] = dict.fromkeys(self.plans)
        self._num_made = 0
        self._used: dict[tuple[str, str], float] = dict.fromkeys(self._profiles, 0.0)
        self.sizes: list[PoolSize] = []

    def begin(self) -> None:
        """The workers that are there from the start, ready at once."""
        for plan in self.plans.values():
            self._wanted[plan.name] = plan.num_workers
            for _ in range(plan.num_workers):
                group = self._group_with_room(plan)
                assert group is not None, f"no node group of {plan.name} has room"
                self._become_ready(self._new_place(plan, group))

    def set_desired(self, pool: str, num_workers: int, now: float) -> None:
        """Starts or drains as many workers as it takes; of those that start, the youngest go first,
        then of the ready ones those that the last target names first, then those with the fewest
        requests. What no node group has room for is started when it has."""
        assert now == self._timeline.now, f"{now} is not the time, {self._timeline.now}"
        assert num_workers >= 0, f"{pool}: {num_workers} workers"
        if self._wanted[pool] != num_workers:
            self._wanted[pool] = num_workers
            self._note(pool)
        self._fill(pool)
        for _ in range(self._num_serving(pool) - num_workers):
            self._end_one(pool)

    def set_target(self, target: PoolTarget, now: float) -> None:
        """As a control plane wants it."""
        plan = self.plans[target.pool]
        order = {name: place for place, name in enumerate(target.node_groups)}
        groups = sorted(plan.groups, key=lambda each: order.get(each.node_group, len(order)))
        self.plans[target.pool] = replace(plan, groups=tuple(groups))
        self._leave_first[target.pool] = target.leave_first
        self.set_desired(target.pool, target.num_places, now)

    def look(self, worker: SimulatedWorker) -> None:
        """A draining worker that has nothing left to do goes."""
        if worker.is_draining and worker.num_requests == 0:
            place = next(p for p in self._living[worker.info.pool] if p.worker is worker)
            self._end(place, WorkerState.STOPPED)
            self._events.left(worker)
            self._fill(worker.info.pool)

    # What is so

    def num_in(self, pool: str, state: WorkerState) -> int:
        return sum(place.state is state for place in self._living[pool])

    def counts(self, pool: str) -> PlaceCounts:
        """What a control plane is told of besides the workers that have joined."""
        return PlaceCounts(
            num_starting=self.num_in(pool, WorkerState.STARTING),
            num_draining=self.num_in(pool, WorkerState.DRAINING),
            num_failures=0,
            startup_s=self._startup_s[pool],
        )

    def ready(self, pool: str) -> list[SimulatedWorker]:
        return [
            place.worker
            for place in self._living[pool]
            if place.worker is not None and place.state is WorkerState.READY
        ]

    def view(self, pool: str) -> PoolView:
        ready = self.ready(pool)
        num_blocks = sum(worker.info.num_blocks for worker in ready)
        num_held = sum(worker.blocks.num_held for worker in ready)
        return PoolView(
            name=pool,
            role=self.plans[pool].role,
            num_wanted=self._wanted[pool],
            num_ready=len(ready),
            num_starting=self.num_in(pool, WorkerState.STARTING),
            num_draining=self.num_in(pool, WorkerState.DRAINING),
            num_ongoing_by_worker=tuple(worker.num_requests for worker in ready),
            backlog_tokens=sum(worker.backlog_tokens for worker in ready),
            kv_utilization=num_held / num_blocks if num_blocks else 0.0,
        )

    def usage(self) -> tuple[Usage, ...]:
        """Until now."""
        used = dict(self._used)
        for pool, places in self._living.items():
            for place in places:
                used[pool, place.info.node_group] += self._timeline.now - place.started_at
        return tuple(
            Usage(
                pool=pool,
                node_group=group,
                worker_s=worker_s,
                gpu_s=worker_s * self._profiles[pool, group].gpus,
                cost=worker_s / 3600 * self._profiles[pool, group].cost_per_hour,
            )
            for (pool, group), worker_s in used.items()
        )

    # One worker's life

    def _num_serving(self, pool: str) -> int:
        return sum(place.state is not WorkerState.DRAINING for place in self._living[pool])

    def _fill(self, pool: str) -> None:
        plan = self.plans[pool]
        while self._num_serving(pool) < self._wanted[pool]:
            group = self._group_with_room(plan)
            if group is None:
                return
            place = self._new_place(plan, group)
            startup_s = self._rng.choice(place.profile.startup_s)
            place.ready = self._timeline.after(startup_s, functools.partial(self._started, place))
            self._note(pool)

    def _group_with_room(self, plan: PoolPlan) -> GroupPlan | None:
        for group in plan.groups:
            places = self._living[plan.name]
            num_here = sum(place.info.node_group == group.node_group for place in places)
            if group.max_workers is None or num_here < group.max_workers:
                return group
        return None

    def _new_place(self, plan: PoolPlan, group: GroupPlan) -> Place:
        profile = self._profiles[plan.name, group.node_group]
        worker_id = WorkerId(f"{plan.name}-{self._num_made}")
        self._num_made += 1
        place = Place(profile, info_of(worker_id, plan, profile), self._timeline.now)
        self._living[plan.name].append(place)
        return place

    def _started(self, place: Place) -> None:
        self._startup_s[place.info.pool] = self._timeline.now - place.started_at
        self._become_ready(place)

    def _become_ready(self, place: Place) -> None:
        place.state, place.ready = WorkerState.READY, None
        place.worker = self._make_worker(place.info, place.profile)
        self._note(place.info.pool)
        self._events.joined(place.worker)

    def _end_one(self, pool: str) -> None:
        places = self._living[pool]
        starting = [place for place in places if place.state is WorkerState.STARTING]
        if starting:
            place = starting[-1]
            assert place.ready is not None, "it starts"
            place.ready.cancel()
            self._end(place, WorkerState.STOPPED)
            return
        ready = [place for place in places if place.state is WorkerState.READY]
        place = min(reversed(ready), key=self._leaving_order)
        assert place.worker is not None, "it is ready"
        place.state = WorkerState.DRAINING
        place.worker.is_draining = True
        self._note(pool)
        self._events.draining(place.worker)
        self.look(place.worker)

    def _leaving_order(self, place: Place) -> tuple[int, int]:
        assert place.worker is not None, "it is ready"
        first, worker_id = self._leave_first[place.info.pool], place.info.worker_id
        order = first.index(worker_id) if worker_id in first else len(first)
        return order, place.worker.num_requests

    def _end(self, place: Place, state: WorkerState) -> None:
        place.state = state
        pool, group = place.info.pool, place.info.node_group
        self._living[pool].remove(place)
        self._used[pool, group] += self._timeline.now - place.started_at
        self._note(pool)

    def _note(self, pool: str) -> None:
        size = PoolSize(
            at=self._timeline.now,
            pool=pool,
            num_wanted=self._wanted[pool],
            num_ready=self.num_in(pool, WorkerState.READY),
            num_starting=self.num_in(pool, WorkerState.STARTING),
            num_draining=self.num_in(pool, WorkerState.DRAINING),
        )
        self.sizes.append(size)


def info_of(worker_id: WorkerId, plan: PoolPlan, profile: WorkerProfile) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker_id,
        pool=plan.name,
        node_group=profile.node_group,
        role=plan.role,
        address=WorkerAddress(worker_id=worker_id, host="simulated", port=1, link_key=b""),
        dtype=profile.dtype,
        layout_digest=profile.layout_digest,
        layout_text=f"layout {profile.layout_digest}",
        model_digest=profile.model_digest,
        block_size=profile.block_size,
        num_blocks=profile.num_blocks,
        max_batch_size=profile.max_batch_size,
        max_tokens_per_step=profile.max_tokens_per_step,
        max_model_len=profile.max_model_len,
        max_sequence_tokens=profile.max_sequence_tokens,
        kv_spans=profile.kv_spans,
    )
