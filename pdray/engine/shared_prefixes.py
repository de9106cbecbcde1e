"""Prefixes in the cache, asked for by their hashes: by those who have no sequence to ask with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from pdray.core.handoff import BlockRun
from pdray.engine.holds import BlockHold, Holds
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.kvcache.prefix_index import BlockName, first_block_of_hit, match_prefix


class SharedPrefixes:
    """Of one engine. ``prefix_hashes`` has one for every 16 tokens of a prefix. Any thread may
    call it: it takes the engine's lock."""

    def __init__(
        self,
        *,
        groups: tuple[KVGroup, ...],
        block_size: int,
        pool: BlockPool,
        holds: Holds,
        lock: threading.Condition,
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._holds = holds
        self._lock = lock

    def count_tokens(
        self, prefix_hashes: Sequence[bytes], also: Callable[[BlockName], bool] | None = None
    ) -> int:
        """How many of its tokens a prompt would find here, were the blocks here too that are
        ``also`` somewhere."""
        with self._lock:
            if also is None:
                return self._match(prefix_hashes) * self._block_size
            find = self._pool.index.find
            match = match_prefix(
                lambda name: find(name) is not None or also(name),
                self._groups,
                self._block_hashes(prefix_hashes),
                self._block_size,
            )
            return match.num_blocks * self._block_size

    def hold_blocks(self, names: Iterable[BlockName], hold: BlockHold) -> list[int | None]:
        """The block of each name that is here; ``hold`` holds them from here on."""
        with self._lock:
            block_ids = [self._pool.index.find(name) for name in names]
            self._holds.retain(hold, (each for each in block_ids if each is not None))
            return block_ids

    def hold(
        self, prefix_hashes: Sequence[bytes], hold: BlockHold, *, step_tokens: int
    ) -> tuple[int, tuple[BlockRun, ...]]:
        """The longest hit of a multiple of ``step_tokens``: its tokens, and the blocks that it
        needs, which ``hold`` holds from here on. None of either where there is no hit."""
        with self._lock:
            num_blocks = self._match_in_steps(prefix_hashes, step_tokens)
            runs = tuple(self._run(group, prefix_hashes, num_blocks) for group in self._groups)
            self._holds.retain(hold, (block_id for run in runs for block_id in run.block_ids))
            return num_blocks * self._block_size, runs if num_blocks else ()

    def _match_in_steps(self, prefix_hashes: Sequence[bytes], step_tokens: int) -> int:
        num_tokens = len(prefix_hashes) * HASH_TOKENS
        while True:
            num_tokens -= num_tokens % step_tokens
            num_found = self._match(prefix_hashes[: num_tokens // HASH_TOKENS]) * self._block_size
            if num_found == num_tokens:
                return num_found // self._block_size
            num_tokens = num_found

    def _match(self, prefix_hashes: Sequence[bytes]) -> int:
        """In blocks."""
        hashes = self._block_hashes(prefix_hashes)
        return self._pool.index.match(self._groups, hashes, self._block_size).num_blocks

    def _block_hashes(self, prefix_hashes: Sequence[bytes]) -> Sequence[bytes]:
        """Those at the end of each whole block."""
        step = self._block_size // HASH_TOKENS
        return prefix_hashes[step - 1 :: step]

    def _run(self, group: KVGroup, prefix_hashes: Sequence[bytes], num_blocks: int) -> BlockRun:
        first = first_block_of_hit(group, num_blocks * self._block_size, self._block_size)
        hashes = self._block_hashes(prefix_hashes)[first:num_blocks]
        block_ids = tuple(self._pool.index[group.group_id, each] for each in hashes)
        return BlockRun(group_id=group.group_id, first_block=first, block_ids=block_ids)
