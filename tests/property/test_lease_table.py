"""Many leases, many readers, any order of events: what a LeaseTable tells its caller."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pdray.transfer.lease import Lease, LeaseState, LeaseTable

LEASE_S = 30.0
QUARANTINE_S = 20.0
EVENTS = ["refuse", "withdraw", "give_up", "acknowledge"]
READERS = ["decode-1", "decode-2", "decode-3"]


class LeaseTableMachine(RuleBasedStateMachine):
    """``blocks`` is what the caller of the table does with a lease's blocks: held,
    quarantined or free, changed only by what the table returns."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(lease_s=LEASE_S, quarantine_s=QUARANTINE_S)
        self.now = 0.0
        self.blocks: dict[str, str] = {}
        self.last_extended: dict[str, float] = {}

    def apply(self, changed: tuple[Lease, ...]) -> None:
        assert len({lease.lease_id for lease in changed}) == len(changed)
        for lease in changed:
            assert self.blocks[lease.lease_id] != "free", "a lease that ended came back"
            if lease.may_release_blocks:
                self.blocks[lease.lease_id] = "free"
                assert lease.lease_id not in self.table
            else:
                assert self.table.get(lease.lease_id) == lease
                if lease.state is LeaseState.QUARANTINED:
                    self.blocks[lease.lease_id] = "quarantined"

    def lease_ids(self) -> st.SearchStrategy[str]:
        return st.sampled_from(sorted(self.blocks))

    @rule(reader_id=st.sampled_from(READERS))
    def offer(self, reader_id: str) -> None:
        lease_id = f"lease-{len(self.blocks)}"
        self.table.offer(lease_id, reader_id, self.now)
        self.blocks[lease_id] = "held"
        self.last_extended[lease_id] = self.now

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), event=st.sampled_from(EVENTS))
    def message(self, data: st.DataObject, event: str) -> None:
        lease_id = data.draw(self.lease_ids())
        handle = getattr(self.table, event)
        self.apply(handle(lease_id))
        assert handle(lease_id) == (), "a doubled message changed something"

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        lease_id = data.draw(self.lease_ids())
        changed = self.table.accept(lease_id, self.now)
        if changed:
            self.last_extended[lease_id] = self.now
        self.apply(changed)
        assert self.table.accept(lease_id, self.now) == ()

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease_id = data.draw(self.lease_ids())
        if self.table.renew(lease_id, self.now):
            assert self.blocks[lease_id] == "held"
            self.last_extended[lease_id] = self.now

    @rule(reader_id=st.sampled_from(READERS), is_gone=st.booleans())
    def lose_reader(self, reader_id: str, is_gone: bool) -> None:
        changed = (self.table.reader_gone if is_gone else self.table.reader_lost)(reader_id)
        assert {lease.reader_id for lease in changed} <= {reader_id}
        self.apply(changed)
        states = {lease.state for lease in self.table if lease.reader_id == reader_id}
        assert states <= (set() if is_gone else {LeaseState.QUARANTINED})

    @rule(elapsed=st.floats(0, LEASE_S + 2 * QUARANTINE_S))
    def tick(self, elapsed: float) -> None:
        due_at = self.table.next_tick_at
        self.now += elapsed
        changed = self.table.tick(self.now)
        assert bool(changed) == (due_at is not None and due_at <= self.now)
        self.apply(changed)
        assert self.table.tick(self.now) == ()

    @invariant()
    def held_blocks_are_those_of_open_leases(self) -> None:
        for lease_id, state in self.blocks.items():
            lease = self.table.get(lease_id)
            assert (state == "free") == (lease is None)
            if lease is not None:
                is_quarantined = lease.state is LeaseState.QUARANTINED
                assert (state == "quarantined") == is_quarantined

    @invariant()
    def no_deadline_is_forgotten(self) -> None:
        for lease in self.table:
            assert lease.deadline == self.last_extended[lease.lease_id] + LEASE_S
        assert self.table.next_tick_at is None or len(self.table) > 0

    def teardown(self) -> None:
        self.now = max(self.last_extended.values(), default=0.0) + LEASE_S + QUARANTINE_S
        self.apply(self.table.tick(self.now))
        assert len(self.table) == 0
        assert set(self.blocks.values()) <= {"free"}


TestLeaseTable = LeaseTableMachine.TestCase
TestLeaseTable.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
