"""The block pool under any order of calls, against a plain model of it: counts always add up,
nobody gets another's block, names lead to their blocks, the least recently used goes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.prefix_index import BlockName

NUM_BLOCKS = 12
NAMES: list[BlockName] = [(group, bytes([number])) for group in (0, 1) for number in range(2)]
"""Few, so that two blocks often want the same."""


class TierBelow:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.evicted_blocks: list[tuple[int, BlockName]] = []
        self.forgotten_names: list[BlockName] = []

    def evicted(self, blocks: Sequence[tuple[int, BlockName]]) -> None:
        self.evicted_blocks += blocks

    def forgotten(self, names: Sequence[BlockName]) -> None:
        self.forgotten_names += names


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders are lists of ids, each with one reference to each of its blocks."""

    holders = Bundle("holders")
    quarantines = Bundle("quarantines")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.below = TierBelow()
        self.pool.next_tier = self.below
        self.held: Counter[int] = Counter()
        self.quarantined: Counter[int] = Counter()
        self.free = set(range(NUM_BLOCKS))
        self.cached: list[int] = []  # least recently used first
        self.names: dict[BlockName, int] = {}
        self.num_evictions = 0

    # What the model does

    def is_named(self, block_id: int) -> bool:
        return block_id in self.names.values()

    def remove_name(self, block_id: int) -> None:
        self.names = {name: each for name, each in self.names.items() if each != block_id}

    def let_go(self, block_ids: Iterable[int], counts: Counter[int]) -> None:
        """One reference less, of holders or of quarantines; the last one was the block's last."""
        for block_id in block_ids:
            counts[block_id] -= 1
            if self.held[block_id] or self.quarantined[block_id]:
                continue
            if self.is_named(block_id):
                self.cached.append(block_id)
            else:
                self.free.add(block_id)

    # What both do

    @rule(target=holders, count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> object:
        block_ids = self.pool.allocate(count)
        if count > len(self.free) + len(self.cached):
            assert block_ids is None
            return multiple()
        assert block_ids is not None
        num_free = min(count, len(self.free))
        num_evicted = count - num_free
        assert set(block_ids[:num_free]) <= self.free
        assert len(set(block_ids)) == count
        assert block_ids[num_free:] == self.cached[:num_evicted]
        self.free -= set(block_ids)
        names = {block_id: name for name, block_id in self.names.items()}
        told, self.below.evicted_blocks = self.below.evicted_blocks, []
        assert told == [(each, names[each]) for each in self.cached[:num_evicted]]
        for block_id in self.cached[:num_evicted]:
            self.remove_name(block_id)
        del self.cached[:num_evicted]
        self.num_evictions += num_evicted
        self.held.update(block_ids)
        return block_ids

    @rule(target=holders, block_ids=holders)
    def retain(self, block_ids: list[int]) -> list[int]:
        self.pool.retain(block_ids)
        self.held.update(block_ids)
        return list(block_ids)

    @rule(block_ids=holders, data=st.data(), name=st.sampled_from(NAMES))
    def name(self, block_ids: list[int], data: st.DataObject, name: BlockName) -> None:
        """A block without a name gets one, or one with a name the same again."""
        if not block_ids:
            return
        block_id = data.draw(st.sampled_from(block_ids))
        own = [each for each, named in self.names.items() if named == block_id]
        self.give_name(block_id, own[0] if own else name)

    def give_name(self, block_id: int, name: BlockName) -> None:
        self.pool.name(block_id, name)
        known = self.names.get(name)
        if known is None:
            self.names[name] = block_id
        elif known in self.cached:
            self.cached.remove(known)
            self.free.add(known)
            self.names[name] = block_id

    @rule(target=holders, names=st.permutations(NAMES))
    def compute(self, names: list[BlockName]) -> object:
        """A block for each name, so that there is often something to find."""
        block_ids = self.allocate(len(names))
        if isinstance(block_ids, list):
            for block_id, name in zip(block_ids, names, strict=True):
                self.give_name(block_id, name)
        return block_ids

    @precondition(lambda self: self.names)
    @rule(target=holders, data=st.data())
    def hit(self, data: st.DataObject) -> list[int]:
        """Whoever holds them, or nobody, or a quarantine."""
        wanted = st.lists(st.sampled_from(sorted(self.names)), min_size=1, max_size=4, unique=True)
        block_ids = [self.names[name] for name in data.draw(wanted)]
        assert self.pool.count_cached(block_ids) == len(set(block_ids) & set(self.cached))
        self.pool.retain(block_ids)
        self.held.update(block_ids)
        self.cached = [each for each in self.cached if each not in block_ids]
        return block_ids

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.names)))
        block_id = self.names[name]
        self.pool.forget([block_id])
        assert self.below.forgotten_names.pop() == name
        self.remove_name(block_id)
        if block_id in self.cached:
            self.cached.remove(block_id)
            self.free.add(block_id)

    @rule(block_ids=consumes(holders))
    def release(self, block_ids: list[int]) -> None:
        self.pool.release(block_ids)
        self.let_go(block_ids, self.held)

    @rule(target=quarantines, block_ids=consumes(holders))
    def quarantine(self, block_ids: list[int]) -> list[int]:
        self.pool.quarantine(block_ids)
        self.quarantined.update(block_ids)
        self.let_go(block_ids, self.held)
        return block_ids

    @rule(block_ids=consumes(quarantines))
    def end_quarantine(self, block_ids: list[int]) -> None:
        self.pool.end_quarantine(block_ids)
        self.let_go(block_ids, self.quarantined)

    @invariant()
    def nothing_else_is_told(self) -> None:
        assert not self.below.evicted_blocks
        assert not self.below.forgotten_names

    @invariant()
    def counts_are_the_models(self) -> None:
        self.pool.check_integrity()
        held = {each for each, count in self.held.items() if count}
        untouchable = {each for each, count in self.quarantined.items() if count} - held
        assert self.pool.num_held_blocks == len(held)
        assert self.pool.num_quarantined_blocks == len(untouchable)
        assert self.pool.num_free_blocks == len(self.free)
        assert self.pool.num_cached_blocks == len(self.cached)
        assert len(held) + len(untouchable) + len(self.free) + len(self.cached) == NUM_BLOCKS
        assert self.pool.num_evictions == self.num_evictions

    @invariant()
    def names_lead_to_their_blocks(self) -> None:
        assert {name: self.pool.index.find(name) for name in NAMES} == {
            name: self.names.get(name) for name in NAMES
        }

    def teardown(self) -> None:
        """The order of all that is cached shows when all of it is evicted."""
        self.allocate(len(self.free) + len(self.cached))


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
