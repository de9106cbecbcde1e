"""Any order of events: what a fleet keeps up to date is what all its workers together say."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdray.control.fleet import Fleet
from pdray.control.worker_record import WorkerRecord
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo, WorkerState
from pdray.policy.admission import max_in_flight
from tests.fleet_factories import make_ask, make_info, make_snapshot

pytestmark = pytest.mark.slow

STALE_AFTER_S = 3.0
NAMES = st.sampled_from([f"w{i}" for i in range(6)])
ROLES = st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED])
PHASES = (Role.PREFILL, Role.DECODE)
SIZES = (100, 200, 500)


class FleetMachine(RuleBasedStateMachine):
    @initialize(phases=ROLES)
    def start(self, phases: Role) -> None:
        self.phases = phases
        self.fleet = Fleet(phases)
        self.now = 0.0
        self.seen_at: dict[str, float] = {}
        self.is_stale: dict[str, bool] = {}
        self.last_pairs: list[list[WorkerInfo]] = []

    @rule(
        name=NAMES,
        role=ROLES,
        layout=st.sampled_from("ab"),
        size=st.sampled_from(SIZES),
        max_model_len=st.sampled_from([150, 300]),
        batch=st.integers(1, 4),
    )
    def add(
        self, name: str, role: Role, layout: str, size: int, max_model_len: int, batch: int
    ) -> None:
        info = make_info(
            name,
            role,
            layout_digest=layout,
            max_sequence_tokens=size,
            max_model_len=max_model_len,
            max_batch_size=batch,
        )
        is_new = WorkerId(name) not in self.fleet
        self.fleet.add(info, self.now)
        if is_new:
            self.seen_at[name], self.is_stale[name] = self.now, False

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        self.fleet.remove(WorkerId(name))
        self.seen_at.pop(name, None)
        self.is_stale.pop(name, None)

    @rule(name=NAMES)
    def drain(self, name: str) -> None:
        self.fleet.drain(WorkerId(name))

    @rule(name=NAMES, is_standby=st.booleans())
    def set_standby(self, name: str, is_standby: bool) -> None:
        if WorkerId(name) in self.fleet:
            self.fleet.set_standby(WorkerId(name), is_standby)

    @rule(
        name=NAMES,
        state=st.sampled_from([WorkerState.READY, WorkerState.READY, WorkerState.DRAINING]),
        backlog=st.integers(0, 300),
        held=st.integers(0, 100),
    )
    def snapshot(self, name: str, state: WorkerState, backlog: int, held: int) -> None:
        told = make_snapshot(
            name, state=state, prefill_backlog_tokens=backlog, num_held_blocks=held
        )
        self.fleet.update(told, self.now)
        if name in self.seen_at:
            self.seen_at[name], self.is_stale[name] = self.now, False

    @rule(name=NAMES, num_tokens=st.integers(1, 300))
    def book_prefill(self, name: str, num_tokens: int) -> None:
        if WorkerId(name) in self.fleet:
            self.fleet.book_prefill(WorkerId(name), num_tokens, self.now)

    @rule(name=NAMES, change=st.sampled_from([1, 1, -1]))
    def book_decode(self, name: str, change: int) -> None:
        if change > 0 or WorkerId(name) in self.fleet.decoding():
            self.fleet.book_decode(WorkerId(name), change, change * 100)

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.fleet.tick(self.now, STALE_AFTER_S)
        for name, seen_at in self.seen_at.items():
            self.is_stale[name] = self.now - seen_at > STALE_AFTER_S

    def able(self, role: Role) -> list[WorkerRecord]:
        workers = [w for w in self.fleet.workers() if w.is_ready and role in w.info.role]
        return sorted(workers, key=lambda worker: worker.number)

    @invariant()
    def accounts_agree(self) -> None:
        self.fleet.check_integrity()

    @invariant()
    def silent_workers_are_stale(self) -> None:
        found = {str(w.info.worker_id): w.is_stale for w in self.fleet.workers()}
        assert found == self.is_stale

    @invariant()
    def ready_workers_are_found_by_age_and_by_load(self) -> None:
        for role in (*PHASES, Role.MIXED):
            assert list(self.fleet.ready(role)) == self.able(role)
        prefills = sorted(
            self.able(Role.PREFILL), key=lambda w: (w.prefill_backlog_tokens, *_fullness(w))
        )
        decodes = sorted(self.able(Role.DECODE), key=_fullness)
        for role, expected in ((Role.PREFILL, prefills), (Role.DECODE, decodes)):
            assert list(self.fleet.by_load(role)) == expected
            assert self.fleet.shortlist(role, 2) == expected[:2]

    @invariant()
    def admission_counts_the_batches_of_ready_workers(self) -> None:
        expected = sum(
            worker.info.max_batch_size
            for role in PHASES
            if role in self.phases
            for worker in self.able(role)
        )
        assert max_in_flight(self.fleet) == expected

    @invariant()
    def limits_are_those_of_the_best_pair(self) -> None:
        """By looking at every pair of workers, where the fleet looks at kinds; where there is none,
        those of the last ones."""
        pairs = [
            pair
            for layout in "ab"
            for prefill in self.living(layout, Role.PREFILL)
            for decode in self.living(layout, Role.DECODE)
            if (pair := [info for info in (prefill, decode) if info is not None])
        ]
        assert self.fleet.has_pair == bool(pairs)
        pairs = self.last_pairs = pairs or self.last_pairs
        for num_prompt_tokens in (90, 190, 490):
            ask = make_ask(num_prompt_tokens=num_prompt_tokens, max_tokens=10)
            could = any(
                pair[0].max_sequence_tokens >= num_prompt_tokens
                and (
                    self.phases is Role.PREFILL
                    or pair[-1].max_sequence_tokens >= num_prompt_tokens + 10
                )
                for pair in pairs
            )
            assert self.fleet.could_hold(ask) == could
        limits = self.fleet.limits()
        assert (limits is None) == (not pairs)
        if limits is not None:
            assert limits.max_sequence_tokens == min(
                max(pair[-1].max_sequence_tokens for pair in pairs), limits.max_model_len
            )
            assert limits.max_model_len in {
                min(info.max_model_len for info in pair) for pair in pairs
            }

    def living(self, layout: str, role: Role) -> list[WorkerInfo | None]:
        if role not in self.phases:
            return [None]
        infos = [worker.info for worker in self.fleet.workers()]
        return [info for info in infos if info.layout_digest == layout and role in info.role]


def _fullness(worker: WorkerRecord) -> tuple[float, int]:
    batch_utilization = worker.num_decoding / worker.info.max_batch_size
    return max(batch_utilization, worker.kv_utilization), worker.num_decoding


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
