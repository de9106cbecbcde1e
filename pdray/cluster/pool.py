"""All pools of one generation: a slot for every worker that the config wants."""

from __future__ import annotations

import asyncio

from pdray.config import PdrayConfig
from pdray.core.clock import Clock

from .messages import WorkerStatus
from .slot import WorkerEvents, WorkerSlot


class WorkerPools:
    """Reconciles: every slot finds or makes its worker, and goes on doing so."""

    def __init__(
        self, config: PdrayConfig, events: WorkerEvents, clock: Clock, *, may_make: bool
    ) -> None:
        self._clock = clock
        self._slots = {
            (name, index): WorkerSlot(config, name, index, events, clock, may_make=may_make)
            for name, pool in config.pools.items()
            for index in range(pool.replicas)
        }

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

    def adopt_only(self) -> None:
        """From now on a worker that ends is followed by none."""
        for slot in self._slots.values():
            slot.may_make = False

    async def give_up_one(self) -> bool:
        """Drains and ends one worker, rather one that is not ready yet; False where none is
        left."""
        slots = [slot for slot in self._slots.values() if slot.is_wanted]
        if not slots:
            return False
        await min(slots, key=lambda slot: slot.is_ready).retire(drain=True)
        return True

    async def stop(self) -> None:
        """Ends all workers at once."""
        await asyncio.gather(*(slot.retire(drain=False) for slot in self._slots.values()))
