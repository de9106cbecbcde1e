"""All pools of one generation: a slot for every worker that the config wants."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

from pdray.config import PdrayConfig
from pdray.core.clock import Clock

from .messages import WorkerStatus
from .slot import WorkerEvents, WorkerSlot


class WorkerPools:
    """Reconciles: every slot finds its worker and, once ``fill`` was called, makes it."""

    def __init__(self, config: PdrayConfig, events: WorkerEvents, clock: Clock) -> None:
        self._config = config
        self._events = events
        self._clock = clock
        self._may_make = asyncio.Event()
        self._slots = {
            (name, index): self._new_slot(name, index)
            for name, pool in config.pools.items()
            for index in range(pool.replicas)
        }

    def _new_slot(self, pool: str, index: int) -> WorkerSlot:
        return WorkerSlot(self._config, pool, index, self._events, self._clock, self._may_make)

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

    def fill(self) -> None:
        """From now on every place has a worker, those that were given up as well."""
        self._may_make.set()
        for (pool, index), slot in self._slots.items():
            if slot.is_over:
                self._slots[pool, index] = self._new_slot(pool, index)

    def adopt_only(self) -> None:
        """From now on a worker that ends is followed by none."""
        self._may_make.clear()

    async def give_up_one(self) -> None:
        """Drains and ends one worker, if one is left, rather one that is not ready yet, then one of
        the pool that has most: no phase goes before it must."""
        slots = [slot for slot in self._slots.values() if slot.is_wanted]
        sizes = Counter(slot.pool for slot in slots)
        if slots:
            await min(slots, key=lambda s: (s.is_ready, -sizes[s.pool])).retire(drain=True)

    def on_node(self, node_id: str) -> list[WorkerSlot]:
        """Places whose workers are there, and not on their way out."""
        return [s for s in self._slots.values() if s.node_id == node_id and s.is_wanted]

    async def replace(self, slot: WorkerSlot, timeout_s: float) -> None:
        """Its worker has to go within this time. The next one is made at once, in another place,
        where any is made; this place is given up."""
        key = (slot.pool, slot.index)
        is_replaced = self._may_make.is_set()
        if is_replaced:
            free = next(i for i in itertools.count() if (slot.pool, i) not in self._slots)
            self._slots[slot.pool, free] = self._new_slot(slot.pool, free)
        await slot.retire(drain=True, timeout_s=timeout_s)
        if is_replaced and self._slots.get(key) is slot:
            del self._slots[key]

    async def stop(self) -> None:
        """Ends all workers at once."""
        await asyncio.gather(*(slot.retire(drain=False) for slot in self._slots.values()))
