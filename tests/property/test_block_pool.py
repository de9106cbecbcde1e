"""The block pool under any order of calls: counts always add up, nobody gets another's block."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from pdray.kvcache.block_pool import BlockPool

NUM_BLOCKS = 12


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders are lists of ids, each with one reference to each of its blocks."""

    holders = Bundle("holders")
    quarantines = Bundle("quarantines")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: Counter[int] = Counter()
        self.quarantined: Counter[int] = Counter()

    @rule(target=holders, count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> object:
        num_free = self.pool.num_free_blocks
        block_ids = self.pool.allocate(count)
        if count > num_free:
            assert block_ids is None
            return multiple()
        assert block_ids is not None
        assert len(set(block_ids)) == count
        assert not any(self.held[each] or self.quarantined[each] for each in block_ids)
        self.held.update(block_ids)
        return block_ids

    @rule(target=holders, block_ids=holders)
    def retain(self, block_ids: list[int]) -> list[int]:
        self.pool.retain(block_ids)
        self.held.update(block_ids)
        return list(block_ids)

    @rule(block_ids=consumes(holders))
    def release(self, block_ids: list[int]) -> None:
        self.pool.release(block_ids)
        self.held.subtract(block_ids)

    @rule(target=quarantines, block_ids=consumes(holders))
    def quarantine(self, block_ids: list[int]) -> list[int]:
        self.pool.quarantine(block_ids)
        self.held.subtract(block_ids)
        self.quarantined.update(block_ids)
        return block_ids

    @rule(block_ids=consumes(quarantines))
    def end_quarantine(self, block_ids: list[int]) -> None:
        self.pool.end_quarantine(block_ids)
        self.quarantined.subtract(block_ids)

    @invariant()
    def counts_are_the_models(self) -> None:
        self.pool.check_integrity()
        held = {each for each, count in self.held.items() if count}
        untouchable = {each for each, count in self.quarantined.items() if count} - held
        assert self.pool.num_held_blocks == len(held)
        assert self.pool.num_quarantined_blocks == len(untouchable)
        assert self.pool.num_free_blocks == NUM_BLOCKS - len(held) - len(untouchable)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
