"""Any order of events: bounds hold, nobody is passed, every request is answered once, and the same
events bring the same answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import (
    InFlight,
    KeptPrefix,
    MoveAsk,
    Placement,
    PlacementAsk,
    Queued,
)
from pdray.core.request import WorkerId
from pdray.core.scaling import PlaceCounts
from pdray.core.snapshot import Role, WorkerInfo, WorkerState
from pdray.event_log.entry import decode, encode
from pdray.policy.placement import PLACEMENT
from pdray.policy.scaling.base import Budget, GroupCost, PoolSetup, ScalingSetup
from tests.fleet_factories import make_ask, make_info, make_policy, make_snapshot
from tests.scaling_factories import make_rails, make_scaling_policy

pytestmark = pytest.mark.slow

MAX_QUEUED = 3
QUEUE_TIMEOUT_S = 20.0
FRONTENDS = ("f", "g")
SIZES = (10, 300)
WORKER_SIZES = (100, 700)
"""A small worker holds only small requests, so that a large one can be in everybody's way."""
WORKER_SLOTS = {
    "p0": Role.PREFILL,
    "p1": Role.PREFILL,
    "d0": Role.DECODE,
    "d1": Role.DECODE,
    "m0": Role.MIXED,
}


POOLS = ("prefill", "decode", "mixed")
RAILS = make_rails(min_replicas=0, max_replicas=4, upscale_delay_s=2.0, downscale_delay_s=5.0)
SCALING = ScalingSetup(
    pools=tuple(
        PoolSetup(
            name=name,
            role=Role.parse(name),
            node_groups=("laptop",),
            replicas=1,
            policy=make_scaling_policy(RAILS, role=Role.parse(name), is_predictive=True),
        )
        for name in POOLS
    ),
    groups={"laptop": GroupCost(num_gpus=1.0, cost_per_hour=None)},
    budget=Budget(max_gpus=6.0),
)

CONVERSATIONS = ((b"a0", b"a1", b"a2"), (b"a0", b"a1", b"b2"))
"""Names of prefixes: of two that begin alike."""
PREFIXES = st.sampled_from(CONVERSATIONS).flatmap(
    lambda names: st.integers(0, len(names)).map(lambda count: names[:count])
)


class ControlPlaneMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_requests = 0
        self.owners: dict[str, str] = {}
        self.queued: list[str] = []
        self.asks: dict[str, PlacementAsk] = {}
        self.names: dict[str, tuple[bytes, ...]] = {}
        self.placed: dict[str, InFlight] = {}
        self.kept: dict[bytes, KeptPrefix] = {}
        self.alive: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.failed_pairs: set[frozenset[str]] = set()
        self.num_lives = 0

    @initialize(policy=st.sampled_from(PLACEMENT.names()))
    def start(self, policy: str) -> None:
        self.policy = policy
        self.begin_life()

    def begin_life(self) -> None:
        self.told: list[bytes] = []
        self.control = self.make_control()
        self.control.journal = lambda told: self.told.append(encode(told))

    def replay(self) -> None:
        """Another control plane, told the same, says the same."""
        control = self.make_control()
        lines: list[bytes] = []
        control.journal = lambda told: lines.append(encode(told))
        for line in self.told:
            decode(line).apply(control)
            control.take_decisions()
            assert lines[-1] == line

    def make_control(self) -> ControlPlane:
        config = ControlConfig(
            max_queued_requests=MAX_QUEUED, queue_timeout_s=QUEUE_TIMEOUT_S, scaling=SCALING
        )
        return ControlPlane(config, make_policy(self.policy))

    def take(self, before: list[str]) -> None:
        """Takes decisions: each answers a request that waited in ``before``, and placements
        come in order of priority, then of arrival."""
        before = sorted(before, key=lambda rid: self.asks[rid].priority)
        placements = []
        for answer in self.control.take_decisions():
            assert answer.request_id in self.queued, "answered twice, or never asked"
            self.queued.remove(answer.request_id)
            if isinstance(answer, Placement):
                self.note_placement(answer)
                placements.append(answer.request_id)
        assert placements == [rid for rid in before if rid in placements]
        if placements:
            assert self.control.num_in_flight <= self.control.max_in_flight
        left_behind = [rid for rid in before if rid in self.queued]
        if placements and left_behind:
            assert before.index(placements[-1]) < before.index(left_behind[0]), "passed in queue"

    def note_placement(self, placement: Placement) -> None:
        assert placement.prefill.worker_id in self.alive.values()
        assert 1 <= len(placement.decode_candidates) <= 4
        for candidate in placement.decode_candidates:
            assert candidate.worker_id in self.alive.values()
            pair = frozenset((placement.prefill.worker_id, candidate.worker_id))
            assert pair not in self.failed_pairs
        self.assert_source_is_known(placement)
        self.placed[placement.request_id] = InFlight(
            ask=self.asks[placement.request_id],
            prefill_id=placement.prefill.worker_id,
            decode_id=placement.decode_candidates[0].worker_id,
        )

    def assert_source_is_known(self, placement: Placement) -> None:
        """The longest prefix that a living worker has, unless the prefill worker itself has it."""
        names = self.names[placement.request_id]
        told = [self.kept[name] for name in reversed(names) if name in self.kept]
        alive = (
            each
            for each in told
            if each.worker_id in self.alive.values()
            and not self.control.fleet.get(each.worker_id).is_stale
            and frozenset((each.worker_id, placement.prefill.worker_id)) not in self.failed_pairs
        )
        longest = next(alive, None)
        source = placement.prefix_source
        if longest is None or longest.worker_id == placement.prefill.worker_id:
            assert source is None
        else:
            assert source is not None
            found = (source.address.worker_id, source.num_tokens)
            assert found == (longest.worker_id, longest.num_tokens)

    def info_of(self, slot: str) -> WorkerInfo:
        return make_info(
            self.alive[slot],
            WORKER_SLOTS[slot],
            max_batch_size=1,
            max_sequence_tokens=self.sizes[slot],
        )

    @rule(
        frontend=st.sampled_from(FRONTENDS),
        count=st.integers(1, 4),
        size=st.sampled_from(SIZES),
        names=PREFIXES,
        priority=st.sampled_from([0, 0, -1, 1]),
    )
    def place(
        self, frontend: str, count: int, size: int, names: tuple[bytes, ...], priority: int
    ) -> None:
        self.now += 0.01
        waiting = any(self.asks[rid].priority <= priority for rid in self.queued)
        ids = [f"r{self.num_requests + i}" for i in range(count)]
        self.num_requests += count
        asks = [
            make_ask(
                rid,
                num_prompt_tokens=size,
                max_tokens=size,
                prefix_names=names,
                priority=priority,
            )
            for rid in ids
        ]
        self.asks |= {ask.request_id: ask for ask in asks}
        self.names |= dict.fromkeys(ids, names)
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
                self.note_placement(answer)
        self.take(list(self.queued))

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        if not self.queued:
            return
        rid = data.draw(st.sampled_from(self.queued))
        assert self.control.place(self.owners[rid], [make_ask(rid)], self.now) == [
            Queued(request_id=rid)
        ]

    @rule(data=st.data(), names=PREFIXES)
    def finish(self, data: st.DataObject, names: tuple[bytes, ...]) -> None:
        known = sorted(self.placed) + self.queued
        if not known:
            return
        self.now += 0.5
        rid = data.draw(st.sampled_from(known))
        before = list(self.queued)
        kept = self.kept_prefixes(rid, names)
        self.kept |= {each.name: each for each in kept}
        self.control.finished(self.owners[rid], [rid, rid, "never asked"], self.now, kept)
        self.placed.pop(rid, None)
        self.take(before)

    def kept_prefixes(self, request_id: str, names: tuple[bytes, ...]) -> list[KeptPrefix]:
        """Of one that is placed: at its end."""
        if request_id not in self.placed:
            return []
        worker_id = self.placed[request_id].decode_id
        return [
            KeptPrefix(name=name, num_tokens=16 * (index + 1), worker_id=worker_id)
            for index, name in enumerate(names)
        ][-1:]

    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        if not self.placed:
            return
        rid = data.draw(st.sampled_from(sorted(self.placed)))
        placed = self.placed[rid]
        assert placed.decode_id is not None
        refused = data.draw(
            st.sets(st.sampled_from([WorkerId("none"), *map(WorkerId, self.alive.values())]))
        )
        ask = MoveAsk(
            request_id=rid,
            source_id=placed.decode_id,
            max_total_tokens=placed.ask.num_prompt_tokens + placed.ask.max_tokens,
            refused=tuple(sorted(refused)),
        )
        (target,) = self.control.move(self.owners[rid], [ask], self.now)
        if target is not None:
            assert placed.decode_id in self.alive.values(), "nobody knows what it has there"
            assert target.worker_id in set(self.alive.values()) - refused - {placed.decode_id}
            assert frozenset((placed.decode_id, target.worker_id)) not in self.failed_pairs
            self.placed[rid] = replace(placed, decode_id=target.worker_id)

    @rule(slot=st.sampled_from(sorted(WORKER_SLOTS)), tokens=st.sampled_from(WORKER_SIZES))
    def join(self, slot: str, tokens: int) -> None:
        if slot in self.alive:
            return
        self.num_lives += 1
        self.alive[slot] = f"{slot}-{self.num_lives}"
        self.sizes[slot] = tokens
        before = list(self.queued)
        self.control.worker_joined(self.info_of(slot), self.now)
        self.take(before)

    @rule(data=st.data(), failure=st.sampled_from([None, "no way"]))
    def meet(self, data: st.DataObject, failure: str | None) -> None:
        if len(self.alive) < 2:
            return
        one, other = data.draw(st.permutations(sorted(self.alive.values())))[:2]
        self.failed_pairs.discard(frozenset((one, other)))
        if failure is not None:
            self.failed_pairs.add(frozenset((one, other)))
        before = list(self.queued)
        self.control.pair_met(WorkerId(one), WorkerId(other), failure, self.now)
        self.take(before)

    @rule(data=st.data())
    def control_plane_is_remade(self, data: st.DataObject) -> None:
        """Workers and frontends tell the next one what they know, in any order; what was
        queued is asked again."""
        self.replay()
        self.begin_life()
        self.kept = {}
        self.failed_pairs = set()
        for teller in data.draw(st.permutations([*self.alive, *FRONTENDS])):
            if teller in self.alive:
                self.control.worker_joined(self.info_of(teller), self.now)
            else:
                mine = [p for rid, p in self.placed.items() if self.owners[rid] == teller]
                assert not self.control.frontend_seen(teller, self.now)
                self.control.resume(teller, mine, self.now)
        waiting, self.queued = self.queued, []
        for rid in waiting:
            (answer,) = self.control.place(self.owners[rid], [self.asks[rid]], self.now)
            if isinstance(answer, Queued):
                self.queued.append(rid)
            elif isinstance(answer, Placement):
                self.note_placement(answer)

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

    @rule(pool=st.sampled_from(POOLS), starting=st.integers(0, 2), failures=st.integers(0, 2))
    def pools_are_looked_at(self, pool: str, starting: int, failures: int) -> None:
        places = PlaceCounts(num_starting=starting, num_failures=failures, startup_s=5.0)
        self.control.places_told(pool, places, self.now)
        self.control.scale(1.7e9 + self.now, self.now)
        for each in self.control.pool_targets():
            assert 0 <= each.num_places <= 4

    @rule(frontend=st.sampled_from(FRONTENDS))
    def frontend_gone(self, frontend: str) -> None:
        before = list(self.queued)
        self.control.frontend_gone(frontend, self.now)
        self.forget({frontend})
        self.take(before)

    def forget(self, frontends: set[str]) -> None:
        gone = [rid for rid in self.placed if self.owners[rid] in frontends]
        for rid in gone:
            del self.placed[rid]

    def tick(self) -> None:
        before = list(self.queued)
        known = set(self.control.frontend_ids)
        self.control.tick(self.now)
        forgotten = known - set(self.control.frontend_ids)
        self.forget(forgotten)
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
            self.placed.pop(rid, None)
        self.take(list(self.queued))
        self.now += QUEUE_TIMEOUT_S
        self.tick()
        assert self.queued == []
        for rid in list(self.placed):
            self.control.finished(self.owners[rid], [rid], self.now)
        assert (self.control.num_in_flight, self.control.fleet.decoding()) == (0, {})
        self.replay()


TestControlPlane = ControlPlaneMachine.TestCase
TestControlPlane.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
