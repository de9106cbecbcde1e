"""Any order of events: bounds hold, nobody is passed, every request is answered once."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import Placement, Queued
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerState
from pdray.policy.placement import PLACEMENT
from tests.fleet_factories import make_ask, make_info, make_snapshot

MAX_QUEUED = 3
QUEUE_TIMEOUT_S = 20.0
FRONTENDS = ("f", "g")
WORKER_SLOTS = {
    "p0": Role.PREFILL,
    "p1": Role.PREFILL,
    "d0": Role.DECODE,
    "d1": Role.DECODE,
    "m0": Role.MIXED,
}


class ControlPlaneMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_requests = 0
        self.owners: dict[str, str] = {}
        self.queued: list[str] = []
        self.placed: set[str] = set()
        self.alive: dict[str, str] = {}
        self.num_lives = 0

    @initialize(policy=st.sampled_from(PLACEMENT.names()))
    def start(self, policy: str) -> None:
        config = ControlConfig(max_queued_requests=MAX_QUEUED, queue_timeout_s=QUEUE_TIMEOUT_S)
        self.control = ControlPlane(config, PLACEMENT.get(policy)())

    def take(self, before: list[str]) -> None:
        """Takes decisions: each answers a request that waited in ``before``, and placements
        come in order of arrival."""
        placements = []
        for answer in self.control.take_decisions():
            assert answer.request_id in self.queued, "answered twice, or never asked"
            self.queued.remove(answer.request_id)
            if isinstance(answer, Placement):
                self.check_placement(answer)
                placements.append(answer.request_id)
                self.placed.add(answer.request_id)
        assert placements == [rid for rid in before if rid in placements]
        left_behind = [rid for rid in before if rid in self.queued]
        if placements and left_behind:
            assert before.index(placements[-1]) < before.index(left_behind[0]), "passed in queue"

    def check_placement(self, placement: Placement) -> None:
        assert placement.prefill.worker_id in self.alive.values()
        assert 1 <= len(placement.decode_candidates) <= 4
        for decode in placement.decode_candidates:
            assert decode.worker_id in self.alive.values()

    @rule(frontend=st.sampled_from(FRONTENDS), count=st.integers(1, 4), size=st.integers(1, 300))
    def place(self, frontend: str, count: int, size: int) -> None:
        self.now += 0.01
        waiting = bool(self.queued)
        ids = [f"r{self.num_requests + i}" for i in range(count)]
        self.num_requests += count
        asks = [make_ask(rid, num_prompt_tokens=size, max_tokens=size) for rid in ids]
        answers = self.control.place(frontend, asks, self.now)
        assert [answer.request_id for answer in answers] == ids
        for answer in answers:
            self.owners[answer.request_id] = frontend
            if isinstance(answer, Queued):
                self.queued.append(answer.request_id)
                waiting = True
            elif isinstance(answer, Placement):
                assert not waiting, "passed in queue"
                assert self.control.num_in_flight <= self.control.max_in_flight
                self.check_placement(answer)
                self.placed.add(answer.request_id)
        self.take(list(self.queued))

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        if not self.queued:
            return
        rid = data.draw(st.sampled_from(self.queued))
        assert self.control.place(self.owners[rid], [make_ask(rid)], self.now) == [
            Queued(request_id=rid)
        ]

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        known = sorted(self.placed) + self.queued
        if not known:
            return
        self.now += 0.5
        rid = data.draw(st.sampled_from(known))
        before = list(self.queued)
        self.control.finished(self.owners[rid], [rid, rid, "never asked"], self.now)
        self.placed.discard(rid)
        self.take(before)

    @rule(slot=st.sampled_from(sorted(WORKER_SLOTS)), tokens=st.integers(100, 700))
    def join(self, slot: str, tokens: int) -> None:
        if slot in self.alive:
            return
        self.num_lives += 1
        self.alive[slot] = f"{slot}-{self.num_lives}"
        info = make_info(
            self.alive[slot], WORKER_SLOTS[slot], max_batch_size=1, max_sequence_tokens=tokens
        )
        before = list(self.queued)
        self.control.worker_joined(info, self.now)
        self.take(before)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if not self.alive:
            return
        slot = data.draw(st.sampled_from(sorted(self.alive)))
        before = list(self.queued)
        self.control.worker_left(WorkerId(self.alive.pop(slot)), self.now)
        self.take(before)

    @rule(data=st.data(), state=st.sampled_from([WorkerState.READY, WorkerState.DRAINING]))
    def snapshot(self, data: st.DataObject, state: WorkerState) -> None:
        if not self.alive:
            return
        worker_id = self.alive[data.draw(st.sampled_from(sorted(self.alive)))]
        before = list(self.queued)
        self.control.snapshot(make_snapshot(worker_id, state=state), self.now)
        self.take(before)

    @rule(seconds=st.floats(0.1, 15.0), alive=st.sets(st.sampled_from(FRONTENDS)))
    def time_passes(self, seconds: float, alive: set[str]) -> None:
        self.now += seconds
        for frontend in alive:
            self.control.frontend_seen(frontend, self.now)
        self.tick()

    @rule(frontend=st.sampled_from(FRONTENDS))
    def frontend_gone(self, frontend: str) -> None:
        before = list(self.queued)
        self.control.frontend_gone(frontend, self.now)
        self.placed -= {rid for rid in self.placed if self.owners[rid] == frontend}
        self.take(before)

    def tick(self) -> None:
        before = list(self.queued)
        known = set(self.control.frontend_ids)
        self.control.tick(self.now)
        forgotten = known - set(self.control.frontend_ids)
        self.placed -= {rid for rid in self.placed if self.owners[rid] in forgotten}
        self.take(before)

    @invariant()
    def accounts_agree(self) -> None:
        if not hasattr(self, "control"):
            return
        self.control.check_integrity()
        assert self.control.num_queued == len(self.queued) <= MAX_QUEUED
        assert self.control.num_in_flight == len(self.placed)

    def teardown(self) -> None:
        """In the end everybody has been answered and every account is at zero."""
        if not hasattr(self, "control"):
            return
        for rid in list(self.placed):
            self.control.finished(self.owners[rid], [rid], self.now)
            self.placed.discard(rid)
        self.take(list(self.queued))
        self.now += QUEUE_TIMEOUT_S
        self.tick()
        assert self.queued == []
        for rid in list(self.placed):
            self.control.finished(self.owners[rid], [rid], self.now)
        assert (self.control.num_in_flight, self.control.fleet.decoding()) == (0, {})


TestControlPlane = ControlPlaneMachine.TestCase
TestControlPlane.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
