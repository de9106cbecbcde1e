"""What a tier holds under any order of calls, against a plain model of it: no slot twice, none
lost, the right one is given up, nothing that is pinned loses its slot, sessions end on time."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pdray.kvcache.prefix_index import BlockName
from pdray.kvcache.tiers.entries import TierEntries, TierEntry

NUM_SLOTS = 4
NAMES: list[BlockName] = [(group, bytes([number])) for group in (0, 1) for number in range(4)]
TTL_S = 10.0


@dataclass(eq=False)
class Model:
    """One entry, by hand; ``used`` counts the calls that used it."""

    entry: TierEntry
    used: int
    keep_until: float | None = None
    pins: int = 1
    is_gone: bool = False


class TierEntriesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.entries = TierEntries(NUM_SLOTS)
        self.models: list[Model] = []
        self.now = 0.0
        self.num_calls = 0

    @property
    def found(self) -> list[Model]:
        return [each for each in self.models if not each.is_gone]

    def give_up_order(self) -> list[Model]:
        plain = [each for each in self.found if each.keep_until is None]
        kept = [each for each in self.found if each.keep_until is not None]
        return sorted(plain, key=lambda each: each.used) + sorted(
            kept, key=lambda each: (each.keep_until, each.used)
        )

    def forget(self, model: Model) -> None:
        model.is_gone = True
        if not model.pins:
            self.models.remove(model)

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: BlockName) -> None:
        if any(each.entry.name == name for each in self.found):
            return
        self.num_calls += 1
        victims = [each for each in self.give_up_order() if not each.pins]
        is_full = len(self.models) == NUM_SLOTS
        entry = self.entries.add(name)
        if is_full and not victims:
            assert entry is None
            return
        assert entry is not None
        if is_full:
            assert victims[0].entry.is_removed
            self.forget(victims[0])
        assert entry.slot not in {each.entry.slot for each in self.models}
        self.models.append(Model(entry, self.num_calls))

    @precondition(lambda self: self.found)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.found))
        self.num_calls += 1
        self.entries.use(model.entry)
        if model.keep_until is None:
            model.used = self.num_calls

    @precondition(lambda self: self.found)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.found))
        self.num_calls += 1
        until = self.now + TTL_S
        self.entries.keep(model.entry, until)
        if model.keep_until is None or model.keep_until < until:
            model.keep_until, model.used = until, self.num_calls

    @precondition(lambda self: self.found)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.found))
        self.entries.pin(model.entry)
        model.pins += 1

    @precondition(lambda self: any(each.pins for each in self.models))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([each for each in self.models if each.pins]))
        self.entries.unpin(model.entry)
        model.pins -= 1
        if model.is_gone and not model.pins:
            self.models.remove(model)

    @precondition(lambda self: self.found)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.found))
        self.entries.remove(model.entry)
        self.forget(model)

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        over = [
            each
            for each in self.found
            if each.keep_until is not None and each.keep_until <= self.now
        ]
        assert set(self.entries.expire(self.now)) == {each.entry for each in over}
        for model in over:
            self.forget(model)

    @invariant()
    def matches_the_model(self) -> None:
        self.entries.check_integrity()
        assert list(self.entries) == [each.entry for each in self.give_up_order()]
        assert len(self.entries) == len(self.found)
        assert self.entries.num_free_slots == NUM_SLOTS - len(self.models)
        for name in NAMES:
            known = [each.entry for each in self.found if each.entry.name == name]
            assert self.entries.find(name) is (known[0] if known else None)
            assert (name in self.entries) == bool(known)
        for model in self.models:
            assert model.entry.num_pins == model.pins
            assert model.entry.is_removed == model.is_gone


TestTierEntries = TierEntriesMachine.TestCase
