"""Names and their holders in sorted arrays: what a plain dict would say."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdray.control.name_shards import NameShards
from pdray.core.prefix_report import KVTier

NAMES = st.integers(0, 3).flatmap(
    lambda high: st.integers(0, 3).map(lambda low: (high << 62) | (low << 40) | 7)
)
HOLDERS = st.sampled_from([0, 1, 2, 2**29 - 1])
TIERS = st.sampled_from(list(KVTier))


class NameShardsMachine(RuleBasedStateMachine):
    @initialize(max_entries=st.sampled_from([3, 12, 4096]))
    def start(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.shards = NameShards(max_entries)
        self.model: dict[tuple[int, int], KVTier] = {}

    @rule(name=NAMES, holder=HOLDERS, tier=TIERS)
    def add(self, name: int, holder: int, tier: KVTier) -> None:
        self.shards.add(name, holder, tier)
        if (name, holder) in self.model or len(self.model) < self.max_entries:
            self.model[name, holder] = self.model.get((name, holder), KVTier(0)) | tier
            return
        # It takes the place of some other, or finds none.
        gone = [pair for pair in self.model if self.shards.tier_of(*pair) is None]
        assert len(gone) <= 1
        assert len(gone) == (self.shards.tier_of(name, holder) is not None)
        for pair in gone:
            del self.model[pair]
            self.model[name, holder] = tier

    @rule(name=NAMES, holder=HOLDERS, tier=TIERS)
    def remove(self, name: int, holder: int, tier: KVTier) -> None:
        self.shards.remove(name, holder, tier)
        left = self.model.pop((name, holder), KVTier(0)) & ~tier
        if left:
            self.model[name, holder] = left

    @rule(unwanted=HOLDERS)
    def sweep_all(self, unwanted: int) -> None:
        self.shards.sweep(lambda holder: holder != unwanted, self.shards.num_shards)
        self.model = {pair: tier for pair, tier in self.model.items() if pair[1] != unwanted}

    @invariant()
    def all_is_found_and_nothing_else(self) -> None:
        if not hasattr(self, "shards"):
            return
        self.shards.check_integrity()
        assert len(self.shards) == len(self.model)
        for (name, holder), tier in self.model.items():
            assert self.shards.tier_of(name, holder) == tier
        for name in {name for name, _ in self.model} | {1 << 63}:
            expected = sorted(holder for each, holder in self.model if each == name)
            assert list(self.shards.holders(name)) == expected
            for holder in range(3):
                assert self.shards.has(name, holder) == (holder in expected)
                assert self.shards.has_any(name, {holder}) == (holder in expected)
            assert self.shards.has_any(name, range(3)) == any(each < 3 for each in expected)


TestNameShards = NameShardsMachine.TestCase
TestNameShards.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
