"""Who holds which KV block. Counts ids; knows no memory, no tokens and no sequences."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Block ids with their holders' references.

    ::

        free --allocate--> held --release (last holder)--> free
                            |
                            +--quarantine--> quarantined --end_quarantine--> free

    A quarantined block may still be touched by a read in flight, so nobody gets it. A block
    is in one state at a time: free + cached + held + quarantined = total.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A stack, low ids on top: a block freed last is the likeliest to be in a CPU's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._quarantines = [0] * num_blocks
        self._num_quarantined = 0

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Unused blocks whose content is worth keeping: none before there is a prefix cache."""
        return 0

    @property
    def num_quarantined_blocks(self) -> int:
        return self._num_quarantined

    @property
    def num_held_blocks(self) -> int:
        return self.num_blocks - len(self._free) - self._num_quarantined

    def allocate(self, num_blocks: int) -> list[int] | None:
        """All of them with one holder each, or None where too few are free."""
        if num_blocks > len(self._free):
            return None
        if num_blocks == 0:
            return []
        block_ids = self._free[-num_blocks:]
        del self._free[-num_blocks:]
        block_ids.reverse()
        for block_id in block_ids:
            self._holders[block_id] = 1
        return block_ids

    def retain(self, block_ids: Iterable[int]) -> None:
        """One more holder for each."""
        for block_id in block_ids:
            assert self._holders[block_id] > 0, f"block {block_id} has no holder to share with"
            self._holders[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """One holder less for each; a block that nobody holds is free."""
        for block_id in block_ids:
            self._drop_holder(block_id)
            if self._holders[block_id] == 0 and self._quarantines[block_id] == 0:
                self._free.append(block_id)
            elif self._holders[block_id] == 0:
                self._num_quarantined += 1

    def quarantine(self, block_ids: Iterable[int]) -> None:
        """As release, but nobody gets the blocks until as many ``end_quarantine`` calls."""
        for block_id in block_ids:
            self._drop_holder(block_id)
            self._quarantines[block_id] += 1
            if self._holders[block_id] == 0:
                self._num_quarantined += 1

    def end_quarantine(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            assert self._quarantines[block_id] > 0, f"block {block_id} is not in quarantine"
            self._quarantines[block_id] -= 1
            if self._quarantines[block_id] == 0 and self._holders[block_id] == 0:
                self._num_quarantined -= 1
                self._free.append(block_id)

    def _drop_holder(self, block_id: int) -> None:
        assert self._holders[block_id] > 0, f"block {block_id} is released but nobody holds it"
        self._holders[block_id] -= 1

    def check_integrity(self) -> None:
        """Raises AssertionError where counts and states do not fit together."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        num_quarantined = 0
        for block_id in range(self.num_blocks):
            holders, quarantines = self._holders[block_id], self._quarantines[block_id]
            assert min(holders, quarantines) >= 0, f"block {block_id} has negative counts"
            is_free = holders == 0 and quarantines == 0
            assert is_free == (block_id in free), f"block {block_id} is and is not free"
            num_quarantined += holders == 0 and quarantines > 0
        assert num_quarantined == self._num_quarantined, "quarantined blocks are miscounted"
        total = (
            self.num_free_blocks
            + self.num_cached_blocks
            + self.num_held_blocks
            + self.num_quarantined_blocks
        )
        assert total == self.num_blocks, f"{total} blocks in all states, {self.num_blocks} exist"
