"""A simulated worker beside the shipped scheduler, stepped one step at a time with the same step
times: each token's request ends at the same moment, and blocks are as many."""

from __future__ import annotations

import random
from collections.abc import Sequence as Row
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdray.core.placement import PlacementAsk
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.engine.sequence import Sequence
from pdray.kvcache.block_pool import BlockPool
from pdray.simulation.gaps import GapCounts
from pdray.simulation.pools import info_of
from pdray.simulation.scenario import GroupPlan, PoolPlan
from pdray.simulation.sequence import SimulatedRequest, SimulatedSequence
from pdray.simulation.timeline import Timeline
from pdray.simulation.worker import KnownTimes, SimulatedWorker
from tests.engine_driver import request_of, sampling_params
from tests.simulated import STEP_TIME, worker_profile
from tests.written_kv import groups_of, scheduler_of

MAX_TOKENS_PER_STEP = 96
ITLS_S = st.sampled_from([0.016, 0.02, 10.0])
"""Two or three decodes and some of a prompt, or all there are."""


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """When each request had its first and its last token."""

    times: list[tuple[float | None, float]]
    num_preemptions: int
    num_free: int


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    at, found = 0.0, []
    for _ in range(draw(st.integers(1, 8))):
        found.append(Arrival(at, rng.randrange(2, 200), rng.randrange(1, 60)))
        at += rng.expovariate(draw(st.sampled_from([3.0, 30.0])))
    return found


class Reference:
    """What worker/prefilling.py and the engine do for prompts that are decoded where they are."""

    def __init__(self, num_blocks: int, itl_s: float) -> None:
        self._pool = BlockPool(num_blocks)
        self._scheduler, self._cache = scheduler_of(
            groups_of([None]),
            self._pool,
            block_size=16,
            max_tokens_per_step=MAX_TOKENS_PER_STEP,
            max_batch_size=4,
            fit=KnownTimes(STEP_TIME, 1.0),
            itl_s=itl_s,
        )
        self._submitted: list[Sequence] = []

    def run(self, coming: Row[Arrival]) -> Run:
        sequences = [self._sequence(number, each) for number, each in enumerate(coming)]
        first_at: dict[str, float] = {}
        last_at: dict[str, float] = {}
        now, num_arrived, num_preemptions = 0.0, 0, 0
        while len(last_at) < len(sequences):
            if not self._submitted and not self._scheduler.has_work:
                now = max(now, coming[num_arrived].at)
            while num_arrived < len(coming) and coming[num_arrived].at <= now:
                self._submit(sequences[num_arrived])
                num_arrived += 1
            plan = self._scheduler.schedule()
            num_preemptions += plan.num_preemptions
            assert plan.chunks, "nothing runs"
            ends_at = now + STEP_TIME.step_s(plan.work)
            while num_arrived < len(coming) and coming[num_arrived].at < ends_at:
                self._submit(sequences[num_arrived])
                num_arrived += 1
            now = ends_at
            for chunk in plan.chunks:
                self._scheduler.advance(chunk)
                seq = chunk.sequence
                # There, the last token of a prompt counts as a decode where it is left over.
                assume(seq.num_uncomputed_tokens != 1)
                if seq.num_uncomputed_tokens:
                    continue
                seq.output_token_ids.append(0)
                first_at.setdefault(seq.request_id, now)
                if len(seq.output_token_ids) == seq.request.sampling.max_tokens:
                    self._scheduler.remove(seq)
                    self._scheduler.release(seq)
                    last_at[seq.request_id] = now
            self._look()
        times = [(first_at[s.request_id], last_at[s.request_id]) for s in sequences]
        return Run(times, num_preemptions, self._pool.num_available_blocks)

    def _sequence(self, number: int, arrival: Arrival) -> Sequence:
        prompt = random.Random(number).choices(range(1000, 2000), k=arrival.num_prompt_tokens)
        sampling = sampling_params(max_tokens=arrival.num_output_tokens)
        request = request_of(prompt, sampling, request_id=f"r{number}")
        seq = Sequence.from_request(request, 0, is_lent=False)
        # Nobody finds the others' prompts, and what a preempted one left is gone, too.
        seq.is_cacheable = False
        return seq

    def _submit(self, seq: Sequence) -> None:
        self._submitted.append(seq)
        self._look()

    def _look(self) -> None:
        while self._submitted:
            if self._scheduler.prefill_backlog_tokens >= 2 * MAX_TOKENS_PER_STEP:
                return
            seq = self._submitted[0]
            if not self._scheduler.allocate(seq, seq.num_tokens):
                return
            self._scheduler.add(self._submitted.pop(0))


class Driver:
    """The worker alone."""

    def __init__(self, num_blocks: int, itl_s: float) -> None:
        self._timeline = Timeline()
        plan = PoolPlan(
            name="mixed", role=Role.MIXED, groups=(GroupPlan(node_group="cpu"),), num_workers=1
        )
        profile = worker_profile(
            "mixed",
            num_blocks=num_blocks,
            max_tokens_per_step=MAX_TOKENS_PER_STEP,
            max_batch_size=4,
        )
        info = info_of(WorkerId("w"), plan, profile)
        self.worker = SimulatedWorker(info, profile, self._timeline, self, GapCounts(), itl_s=itl_s)
        self._ended: dict[str, float] = {}

    def run(self, coming: Row[Arrival]) -> Run:
        requests = [_request(number, each) for number, each in enumerate(coming)]
        for request in requests:
            self._timeline.at(
                request.arrived_at,
                lambda request=request: self.worker.submit(SimulatedSequence(request)),
            )
        while self._timeline.step():
            self.worker.check_integrity()
        times = [(each.first_token_at, self._ended[each.request_id]) for each in requests]
        return Run(times, self.worker.num_preemptions, self.worker.blocks.num_free)

    def finished(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        assert seq.request.num_left == 0
        self._ended[seq.request.request_id] = self._timeline.now

    def has_room(self, worker_id: WorkerId) -> None:
        pass

    def reserve(self, worker_id: WorkerId, seq: SimulatedSequence) -> bool:
        raise AssertionError("nothing is lent")

    def chunk_done(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        raise AssertionError("nothing is lent")


def _request(number: int, arrival: Arrival) -> SimulatedRequest:
    ask = PlacementAsk(
        request_id=f"r{number}",
        num_prompt_tokens=arrival.num_prompt_tokens,
        max_tokens=arrival.num_output_tokens,
    )
    return SimulatedRequest(
        request_id=ask.request_id,
        arrived_at=arrival.at,
        num_prompt_tokens=arrival.num_prompt_tokens,
        num_output_tokens=arrival.num_output_tokens,
        ask=ask,
    )


@settings(max_examples=200, deadline=None)
@given(coming=arrivals(), num_blocks=st.integers(17, 60), itl_s=ITLS_S)
def test_tokens_come_when_the_shipped_scheduler_makes_them(
    coming: list[Arrival], num_blocks: int, itl_s: float
) -> None:
    expected = Reference(num_blocks, itl_s).run(coming)
    found = Driver(num_blocks, itl_s).run(coming)
    for one, other in zip(found.times, expected.times, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    assert found.num_preemptions == expected.num_preemptions
    assert found.num_free == expected.num_free == num_blocks
