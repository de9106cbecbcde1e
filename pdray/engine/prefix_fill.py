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
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.kvcache.prefix_index import first_block_of_hit


@dataclass(frozen=True, slots=True, eq=False)
class PrefixFill:
    """``missing`` are the stretches of each group's blocks that are to be filled; ``found`` are
    blocks that were here already, held so that the hit is whole when the others have come.
    ``block_hashes`` name the prefix at the end of each of its blocks."""

    block_hashes: tuple[bytes, ...]
    missing: tuple[BlockRun, ...]
    found: tuple[int, ...]

    @property
    def block_ids(self) -> list[int]:
        """All that it holds; of each group's the last comes first."""
        stretches = (reversed(run.block_ids) for run in reversed(self.missing))
        return [*itertools.chain.from_iterable(stretches), *self.found]


class PrefixFills:
    """The fills of one engine, each from ``begin`` to its ``finish`` or ``abandon``; what they
    hold, nobody else gets.

    Any thread may call it: it takes the engine's lock, and tells those who wait at it.
    ``is_pool_promised`` says whether somebody waits for blocks already.
    """

    def __init__(
        self,
        *,
        groups: tuple[KVGroup, ...],
        block_size: int,
        pool: BlockPool,
        is_pool_promised: Callable[[], bool],
        changed: threading.Condition,
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._is_pool_promised = is_pool_promised
        self._changed = changed
        self._open: set[PrefixFill] = set()

    @property
    def block_ids(self) -> set[int]:
        """All that the open fills hold."""
        with self._changed:
            return {block_id for fill in self._open for block_id in fill.block_ids}

    @property
    def num_references(self) -> int:
        with self._changed:
            return sum(len(fill.block_ids) for fill in self._open)

    def begin(self, prefix_hashes: Sequence[bytes], num_tokens: int) -> PrefixFill | None:
        """Takes the blocks that a hit of ``num_tokens``, rounded down to whole blocks, lacks here.
        ``prefix_hashes`` has one for every 16 tokens, for that many at least. None where it
        lacks none, or there are too few."""
        step = self._block_size // HASH_TOKENS
        end = num_tokens // self._block_size * step
        block_hashes = tuple(prefix_hashes[step - 1 : end : step])
        with self._changed:
            found, lacking = self._look_up(block_hashes)
            num_taken = len(lacking) + self._pool.count_cached(found)
            has_room = num_taken <= self._pool.num_available_blocks
            if not lacking or not has_room or self._is_pool_promised():
                return None
            self._pool.retain(found)
            taken = self._pool.allocate(len(lacking))
            assert taken is not None, "the pool lacks blocks that it had"
            missing = stretches_of(zip(lacking, taken, strict=True))
            fill = PrefixFill(block_hashes, missing, tuple(found))
            self._open.add(fill)
            return fill

    def finish(self, fill: PrefixFill) -> None:
        """Its missing blocks are filled: the prefix is in the cache."""
        with self._changed:
            for run in fill.missing:
                hashes = fill.block_hashes[run.first_block :]
                for block_id, prefix in zip(run.block_ids, hashes, strict=False):
                    self._pool.name(block_id, (run.group_id, prefix))
            self._end(fill)

    def abandon(self, fill: PrefixFill) -> None:
        """Nothing will come of it. No read may be in flight into its blocks any more."""
        with self._changed:
            self._end(fill)

    def _end(self, fill: PrefixFill) -> None:
        self._open.remove(fill)
        self._pool.release(fill.block_ids)
        self._changed.notify_all()

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
