"""All pools of one generation: a slot for every worker that is wanted, or still has to leave."""

from __future__ import annotations

import asyncio
from collections import Counter

from pdray.config import PdrayConfig
from pdray.core.clock import Clock
from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts, PoolTarget

from .messages import WorkerStatus
from .names import largest_pools, living_actors, place_of
from .node_groups import steady_first
from .slot import WorkerEvents, WorkerSlot


class WorkerPools:
    """Reconciles: every slot finds its worker and, once ``fill`` was called, makes it; there are as
    many slots as the pool's target says."""

    def __init__(self, config: PdrayConfig, events: WorkerEvents, clock: Clock) -> None:
        self._config = config
        self._events = events
        self._clock = clock
        self._may_make = asyncio.Event()
        self._targets = {
            name: PoolTarget(
                pool=name,
                num_places=pool.first_replicas,
                node_groups=pool.node_groups,
                leave_first=(),
            )
            for name, pool in config.pools.items()
        }
        self._slots: dict[tuple[str, int], WorkerSlot] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._failed_before: Counter[str] = Counter()
        for name, target in self._targets.items():
            for _ in range(target.num_places):
                self._add_slot(name)

    async def adopt_living(self) -> dict[str, int]:
        """Workers that a controller of this generation before has made have a slot from now on.
        Returns how many there are, by pool; of another generation, whose load this one is to have,
        where it has more."""
        application = self._config.serve.application
        names = await living_actors(application)
        found = [place for name in names if (place := place_of(name, application)) is not None]
        found = [place for place in found if place.pool in self._targets]
        for place in found:
            key = place.pool, place.index
            if place.generation == self._config.generation and key not in self._slots:
                self._slots[key] = self._new_slot(*key)
        return largest_pools(found)

    def find(self, pool: str, index: int) -> WorkerSlot | None:
        return self._slots.get((pool, index))

    def ready(self) -> list[WorkerSlot]:
        return [slot for slot in self._slots.values() if slot.is_ready]

    def statuses(self) -> tuple[WorkerStatus, ...]:
        return tuple(slot.status() for slot in self._slots.values())

    def pending_s(self) -> float:
        """For how long a worker has been waiting for room; 0 where none has."""
        since = [s.pending_since for s in self._slots.values() if s.pending_since is not None]
        return self._clock.now() - min(since) if since else 0.0

    def places(self, pool: str) -> PlaceCounts:
        slots = [slot for (name, _), slot in self._slots.items() if name == pool]
        started = [slot.started for slot in slots if slot.started is not None]
        return PlaceCounts(
            num_starting=sum(slot.is_wanted and not slot.is_ready for slot in slots),
            num_draining=sum(not slot.is_wanted for slot in slots),
            num_failures=self._failed_before[pool] + sum(s.num_failed_starts for s in slots),
            startup_s=max(started)[1] if started else None,
        )

    def set_target(self, target: PoolTarget) -> None:
        self._targets[target.pool] = target
        if self._may_make.is_set():
            self._reconcile(target)

    def fill(self) -> None:
        """From now on every place has a worker, those that were given up as well."""
        self._may_make.set()
        for target in self._targets.values():
            self._reconcile(target)

    def adopt_only(self) -> None:
        """From now on a worker that ends is followed by none."""
        self._may_make.clear()

    async def give_up_one(self) -> None:
        """Drains and ends one worker, if one is left, rather one that is not ready yet, then one of
        the pool that has most: no phase goes before it must."""
        slots = [slot for slot in self._slots.values() if slot.is_wanted]
        sizes = Counter(slot.pool for slot in slots)
        if slots:
            await self._retire(min(slots, key=lambda s: (s.is_ready, -sizes[s.pool])))

    def on_node(self, node_id: str) -> list[WorkerSlot]:
        """Places whose workers are there, and not on their way out."""
        return [s for s in self._slots.values() if s.node_id == node_id and s.is_wanted]

    def take_away(self, slot: WorkerSlot, timeout_s: float) -> None:
        """Its worker has to go within this time; another is made at once, where any is made."""
        self._leave(slot, timeout_s)
        if self._may_make.is_set():
            self._reconcile(self._targets[slot.pool])

    async def stop(self) -> None:
        """Ends all workers at once."""
        await asyncio.gather(*(slot.retire(drain=False) for slot in self._slots.values()))

    def _reconcile(self, target: PoolTarget) -> None:
        wanted = [slot for slot in self._slots.values() if slot.pool == target.pool]
        wanted = [slot for slot in wanted if slot.is_wanted]
        for _ in range(target.num_places - len(wanted)):
            self._add_slot(target.pool)
        # What has not started yet costs nobody anything; the youngest waits longest.
        order: dict[WorkerId | None, int] = {
            worker_id: place for place, worker_id in enumerate(target.leave_first)
        }
        wanted.sort(key=lambda s: (s.is_ready, order.get(s.worker_id, len(order)), -s.index))
        for slot in wanted[: max(len(wanted) - target.num_places, 0)]:
            self._leave(slot)

    def _leave(self, slot: WorkerSlot, timeout_s: float | None = None) -> None:
        slot.is_wanted = False
        leaving = asyncio.get_running_loop().create_task(self._retire(slot, timeout_s))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _retire(self, slot: WorkerSlot, timeout_s: float | None = None) -> None:
        await slot.retire(drain=True, timeout_s=timeout_s)
        self._failed_before[slot.pool] += slot.num_failed_starts
        del self._slots[slot.pool, slot.index]

    def _add_slot(self, pool: str) -> None:
        taken = {index for name, index in self._slots if name == pool}
        index = next(index for index in range(len(taken) + 1) if index not in taken)
        self._slots[pool, index] = self._new_slot(pool, index)

    def _new_slot(self, pool: str, index: int) -> WorkerSlot:
        groups = self._targets[pool].node_groups
        policy = self._config.pools[pool].autoscaling
        if policy is not None and index < policy.min_replicas:
            spot = [name for name, group in self._config.node_groups.items() if group.spot]
            groups = steady_first(groups, frozenset(spot))
        return WorkerSlot(
            self._config, pool, index, groups, self._events, self._clock, self._may_make
        )
