"""Filling the prefix cache with KV that was computed elsewhere, before a prompt that needs it runs.

Where the KV comes from, and who moves it, is the caller's affair: blocks are taken, filled by a
read, named and given back, and the prompt then finds them as it finds any others.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pdray.core.handoff import BlockRun
from pdray.engine.holds import BlockHold, Holds
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.kvcache.prefix_index import first_block_of_hit


@dataclass(frozen=True, slots=True, eq=False)
class PrefixFill:
    """``missing`` are the stretches of each group's blocks that are to be filled. ``hold`` has
    those that were here already, too, so that the hit is whole when the others have come.
    ``block_hashes`` name the prefix at the end of each of its blocks."""

    block_hashes: tuple[bytes, ...]
    missing: tuple[BlockRun, ...]
    hold: BlockHold


class PrefixFills:
    """The fills of one engine, each from ``begin`` to its ``finish`` or ``abandon``; what they
    hold, nobody else gets.

    Any thread may call it: ``lock`` is the engine's. ``is_pool_promised`` says whether somebody
    waits for blocks already.
    """

    def __init__(
        self,
        *,
        groups: tuple[KVGroup, ...],
        block_size: int,
        pool: BlockPool,
        holds: Holds,
        is_pool_promised: Callable[[], bool],
        lock: threading.Condition,
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._holds = holds
        self._is_pool_promised = is_pool_promised
        self._lock = lock

    def begin(self, prefix_hashes: Sequence[bytes], num_tokens: int) -> PrefixFill | None:
        """Takes the blocks that a hit of ``num_tokens``, rounded down to whole blocks, lacks here.
        ``prefix_hashes`` has one for every 16 tokens, for that many at least. None where it
        lacks none, or there are too few."""
        step = self._block_size // HASH_TOKENS
        end = num_tokens // self._block_size * step
        block_hashes = tuple(prefix_hashes[step - 1 : end : step])
        with self._lock:
            found, lacking = self._look_up(block_hashes)
            num_taken = len(lacking) + self._pool.count_cached(found)
            has_room = num_taken <= self._pool.num_available_blocks
            if not lacking or not has_room or self._is_pool_promised():
                return None
            hold = BlockHold()
            self._holds.retain(hold, found)
            taken = self._holds.allocate(hold, len(lacking))
            assert taken is not None, "the pool lacks blocks that it had"
            return PrefixFill(block_hashes, stretches_of(zip(lacking, taken, strict=True)), hold)

    def finish(self, fill: PrefixFill) -> None:
        """Its missing blocks are filled: the prefix is in the cache."""
        with self._lock:
            for run in fill.missing:
                hashes = fill.block_hashes[run.first_block :]
                for block_id, prefix in zip(run.block_ids, hashes, strict=False):
                    self._pool.name(block_id, (run.group_id, prefix))
            self._holds.release(fill.hold)

    def abandon(self, fill: PrefixFill) -> None:
        """Nothing will come of it. No read may be in flight into its blocks any more."""
        self._holds.release(fill.hold)

    def _look_up(self, block_hashes: Sequence[bytes]) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of the blocks that are here, and (group, number) of those that are not."""
        found: list[int] = []
        lacking: list[tuple[int, int]] = []
        end = len(block_hashes)
        for group in self._groups:
            first = first_block_of_hit(group, end * self._block_size, self._block_size)
            for number in range(first, end):
                block_id = self._pool.index.find((group.group_id, block_hashes[number]))
                if block_id is None:
                    lacking.append((group.group_id, number))
                else:
                    found.append(block_id)
        return found, lacking


def stretches_of(blocks: Iterable[tuple[tuple[int, int], int]]) -> tuple[BlockRun, ...]:
    """Of blocks, each as ((group, number), id) and in order, those that follow each other
    together."""
    runs = []
    for (group_id, _), stretch in itertools.groupby(
        enumerate(blocks), lambda each: (each[1][0][0], each[1][0][1] - each[0])
    ):
        members = [block for _, block in stretch]
        (_, first_block), _ = members[0]
        block_ids = tuple(block_id for _, block_id in members)
        runs.append(BlockRun(group_id=group_id, first_block=first_block, block_ids=block_ids))
    return tuple(runs)
