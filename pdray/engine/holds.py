"""Blocks that are held for somebody other than a sequence: a lease's reader, a read that fills."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakSet

from pdray.engine.sequence import Sequence
from pdray.kvcache.block_pool import BlockPool


@dataclass(slots=True, weakref_slot=True, eq=False)
class BlockHold:
    """One holder's blocks, each once, in the order in which they came; ``Holds`` changes it."""

    block_ids: dict[int, None] = field(default_factory=dict)
    is_quarantined: bool = False


class Holds:
    """All holds on the blocks of one pool. Any thread may call, as with the engine: ``lock`` is
    the engine's.

    Whoever makes a hold releases it, or quarantines it and ends that. A hold or a sequence that
    is dropped instead leaves blocks that nobody will ever give back: the pool then has more
    references than are known here.
    """

    def __init__(self, pool: BlockPool, lock: threading.Condition) -> None:
        self._pool = pool
        self._lock = lock
        self._holds: WeakSet[BlockHold] = WeakSet()
        self._sequences: WeakSet[Sequence] = WeakSet()

    def watch(self, seq: Sequence) -> None:
        """It may hold blocks from here on. For the engine, with its lock held."""
        self._sequences.add(seq)

    def retain(self, hold: BlockHold, block_ids: Iterable[int]) -> None:
        """One more holder for those of the blocks that it has not yet. Somebody holds them now,
        or they can be found in the prefix cache."""
        assert not hold.is_quarantined, "a hold in quarantine takes no more blocks"
        with self._lock:
            new_ids = [block_id for block_id in block_ids if block_id not in hold.block_ids]
            self._pool.retain(new_ids)
            hold.block_ids.update(dict.fromkeys(new_ids))
            self._holds.add(hold)

    def allocate(self, hold: BlockHold, num_blocks: int) -> list[int] | None:
        """New blocks of the pool for it, in ascending order where it can be; or None."""
        with self._lock:
            block_ids = self._pool.allocate(num_blocks)
            if block_ids is not None:
                hold.block_ids.update(dict.fromkeys(block_ids))
                self._holds.add(hold)
            return block_ids

    def release(self, hold: BlockHold) -> None:
        """Gives all of them back. A second call does nothing."""
        with self._lock:
            assert not hold.is_quarantined, "a hold is released in quarantine"
            # What was published last is evicted first: it is of no use without what is before it.
            self._pool.release(reversed(hold.block_ids))
            hold.block_ids.clear()
            self._lock.notify_all()

    def quarantine(self, hold: BlockHold) -> None:
        """As release, but nobody gets the blocks before ``end_quarantine``."""
        with self._lock:
            assert not hold.is_quarantined, "a hold is quarantined twice"
            hold.is_quarantined = True
            self._pool.quarantine(hold.block_ids)

    def end_quarantine(self, hold: BlockHold) -> None:
        with self._lock:
            assert hold.is_quarantined, "a hold is not in quarantine"
            hold.is_quarantined = False
            self._pool.end_quarantine(reversed(hold.block_ids))
            hold.block_ids.clear()
            self._lock.notify_all()

    @property
    def num_references(self) -> int:
        """Of all holds and sequences that somebody still knows, quarantines too."""
        with self._lock:
            num_held = sum(len(hold.block_ids) for hold in self._holds)
            return num_held + sum(seq.num_held_blocks for seq in self._sequences)
