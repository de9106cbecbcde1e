"""Who holds which KV block, and what unused ones are kept for. Counts ids; knows no memory, no
tokens and no sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from pdray.kvcache.prefix_index import BlockName, PrefixIndex


class NextTier(Protocol):
    """What is told of blocks that the pool loses, in the middle of its calls: must not call it."""

    def evicted(self, blocks: Sequence[tuple[int, BlockName]]) -> None:
        """They go to others; until this returns, their bytes are still there."""

    def forgotten(self, names: Sequence[BlockName]) -> None:
        """What was found under these names is not to be trusted."""


class BlockPool:
    """Block ids with their holders' references, and the names of those worth finding again.

    ::

        free --allocate--> held --release (last holder), no name--> free
                           | ^ +--release (last holder), a name--> cached --evict--> held
                           | +----------------retain------------------+
                           +--quarantine--> quarantined --end_quarantine--> free or cached

    A quarantined block may still be touched by a read in flight, so nobody gets it; one that
    was only read has its name still, and may be retained. A named block is full and never
    written again. A block is in one state at a time: free + cached + held + quarantined = total.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self.index = PrefixIndex()
        self.next_tier: NextTier | None = None
        # A stack, low ids on top: a block freed last is the likeliest to be in a CPU's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        # Least recently used first. A dict, as its keys keep the order in which they came.
        self._cached: dict[int, None] = {}
        self._holders = [0] * num_blocks
        self._quarantines = [0] * num_blocks
        self._num_quarantined = 0
        self._num_references = 0

    @property
    def num_references(self) -> int:
        """Of all blocks together: their holders, and their quarantines."""
        return self._num_references

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Unused blocks whose content is worth keeping."""
        return len(self._cached)

    @property
    def num_available_blocks(self) -> int:
        """What ``allocate`` could give: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_quarantined_blocks(self) -> int:
        return self._num_quarantined

    @property
    def num_held_blocks(self) -> int:
        return self.num_blocks - self.num_available_blocks - self._num_quarantined

    def is_shared(self, block_id: int) -> bool:
        """Whether it has more holders than one."""
        return self._holders[block_id] > 1

    def count_cached(self, block_ids: Iterable[int]) -> int:
        """How many of them are cached: ``retain`` makes them unavailable."""
        return sum(block_id in self._cached for block_id in block_ids)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """All of them with one holder each, or None where too few are available. Free ones
        first, then the least recently used of the cached."""
        if num_blocks > self.num_available_blocks:
            return None
        num_kept = max(0, len(self._free) - num_blocks)
        block_ids = self._free[num_kept:]
        del self._free[num_kept:]
        block_ids.reverse()
        block_ids += self._evict(num_blocks - len(block_ids))
        for block_id in block_ids:
            self._holders[block_id] = 1
        self._num_references += num_blocks
        return block_ids

    def _evict(self, num_blocks: int) -> list[int]:
        block_ids = list(itertools.islice(self._cached, num_blocks))
        if block_ids and self.next_tier is not None:
            self.next_tier.evicted([(each, self.index.name_of(each)) for each in block_ids])
        for block_id in block_ids:
            del self._cached[block_id]
            self.index.remove(block_id)
        self.num_evictions += len(block_ids)
        return block_ids

    def retain(self, block_ids: Iterable[int]) -> None:
        """One more holder for each. One that nobody holds must have a name."""
        for block_id in block_ids:
            if self._holders[block_id] == 0:
                assert block_id in self.index, f"block {block_id} has no holder to share with"
                if self._quarantines[block_id]:
                    self._num_quarantined -= 1
                else:
                    del self._cached[block_id]
            self._holders[block_id] += 1
            self._num_references += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder less for each; of those that nobody holds any more, the named are cached,
        and evicted in this order."""
        for block_id in block_ids:
            self._drop_holder(block_id)
            if self._holders[block_id] == 0:
                if self._quarantines[block_id]:
                    self._num_quarantined += 1
                else:
                    self._make_available(block_id)

    def quarantine(self, block_ids: Iterable[int]) -> None:
        """As release, but nobody gets the blocks until as many ``end_quarantine`` calls."""
        for block_id in block_ids:
            self._drop_holder(block_id)
            self._quarantines[block_id] += 1
            self._num_references += 1
            if self._holders[block_id] == 0:
                self._num_quarantined += 1

    def end_quarantine(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            assert self._quarantines[block_id] > 0, f"block {block_id} is not in quarantine"
            self._quarantines[block_id] -= 1
            self._num_references -= 1
            if self._quarantines[block_id] == 0 and self._holders[block_id] == 0:
                self._num_quarantined -= 1
                self._make_available(block_id)

    def _drop_holder(self, block_id: int) -> None:
        assert self._holders[block_id] > 0, f"block {block_id} is released but nobody holds it"
        self._holders[block_id] -= 1
        self._num_references -= 1

    def _make_available(self, block_id: int) -> None:
        if block_id in self.index:
            self._cached[block_id] = None
        else:
            self._free.append(block_id)

    # Names

    def name(self, block_id: int, name: BlockName) -> None:
        """The held block is full, and can be found under ``name`` from here on. Where another
        has the name already, an unused one gives it up and is free, a used one keeps it."""
        assert self._holders[block_id] > 0, f"block {block_id} gets a name and nobody holds it"
        known = self.index.find(name)
        if known is None:
            self.index.put(block_id, name)
        elif known in self._cached:
            self._unname(known)
            self.index.put(block_id, name)

    def forget(self, block_ids: Iterable[int]) -> None:
        """Nobody will find them again, here or in the tiers below."""
        named = [block_id for block_id in block_ids if block_id in self.index]
        if named and self.next_tier is not None:
            self.next_tier.forgotten([self.index.name_of(block_id) for block_id in named])
        for block_id in named:
            self._unname(block_id)

    def _unname(self, block_id: int) -> None:
        self.index.remove(block_id)
        if block_id in self._cached:
            del self._cached[block_id]
            self._free.append(block_id)

    def check_integrity(self) -> None:
        """Raises AssertionError where counts, states and names do not fit together."""
        self.index.check_integrity()
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        num_quarantined = 0
        for block_id in range(self.num_blocks):
            holders, quarantines = self._holders[block_id], self._quarantines[block_id]
            assert min(holders, quarantines) >= 0, f"block {block_id} has negative counts"
            is_available = holders == 0 and quarantines == 0
            has_name = block_id in self.index
            is_free, is_cached = block_id in free, block_id in self._cached
            assert is_free == (is_available and not has_name), f"block {block_id} is and isn't free"
            assert is_cached == (is_available and has_name), f"block {block_id} is and isn't cached"
            num_quarantined += holders == 0 and quarantines > 0
        assert num_quarantined == self._num_quarantined, "quarantined blocks are miscounted"
        num_references = sum(self._holders) + sum(self._quarantines)
        assert num_references == self._num_references, "references are miscounted"
        num_held = sum(holders > 0 for holders in self._holders)
        total = len(free) + self.num_cached_blocks + num_held + num_quarantined
        assert total == self.num_blocks, f"{total} blocks in all states, {self.num_blocks} exist"
