"""The scheduler under any order of arrivals, cancellations and steps: no block is lost or shared,
budgets hold, prompts never run out of blocks, and nobody starves: the oldest goes on in every step
as it would alone, and all end in a number of steps that is known beforehand."""

from __future__ import annotations

import threading

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdray.core.step_time import StepTime
from pdray.engine.block_needs import first_needed_block, max_sequence_tokens, num_blocks_of
from pdray.engine.holds import BlockHold, Holds
from pdray.engine.prefix_fill import PrefixFill, PrefixFills
from pdray.engine.scheduler import StepPlan
from pdray.engine.sequence import Sequence, SequenceState
from pdray.engine.step_budget import FLOOR_TOKENS
from pdray.kvcache.block_pool import BlockPool
from tests.engine_driver import request_of, sampling_params
from tests.fitted import fit_of
from tests.written_kv import WrittenKV, groups_of, scheduler_of, tokens_alone

BLOCK_SIZE = 16
MAX_TOKENS_PER_STEP = 40
MAX_BATCH_SIZE = 4
PROMPTS = [[kind * (position >= 48) for position in range(200)] for kind in (0, 1, 2)]
"""Three that part after three blocks."""
KINDS = st.integers(0, len(PROMPTS) - 1)
# Whole blocks often: the ends of hits are there.
LENGTHS = st.integers(1, 200) | st.integers(1, 12).map(lambda count: count * BLOCK_SIZE)


MIN_CHUNK_TOKENS = MAX_TOKENS_PER_STEP - (MAX_BATCH_SIZE - 1)
"""What decodes leave of a step to the oldest prompt."""


STEP_TIME = StepTime(
    base_s=0.01, prefill_token_s=0.001, prefill_pair_s=1e-6, decode_s=0.01, context_token_s=1e-6
)
"""Two decodes and a floor of a prompt fit in 0.06 s, one decode alone in 0.03 s."""


def steps_alone(sequence: Sequence) -> int:
    """At most, of one that nobody goes before, with all that it will ever say computed again at
    its end."""
    num_outputs = sequence.request.sampling.max_tokens
    return -(-(sequence.num_prefill_tokens + num_outputs) // FLOOR_TOKENS) + num_outputs


class SchedulerMachine(RuleBasedStateMachine):
    """Stands for the engine."""

    @initialize(
        windows=st.lists(st.sampled_from([None, 1, 16, 17, 24, 36]), min_size=1, max_size=3),
        num_blocks=st.integers(14, 40),
        itl_s=st.sampled_from([None, None, 0.03, 0.06]),
    )
    def start(self, windows: list[int | None], num_blocks: int, itl_s: float | None) -> None:
        self.itl_s = itl_s
        self.groups = groups_of(windows)
        self.pool = BlockPool(num_blocks)
        self.kv = WrittenKV(self.groups, self.pool, BLOCK_SIZE)
        self.scheduler, self.prefix_cache = scheduler_of(
            self.groups,
            self.pool,
            block_size=BLOCK_SIZE,
            max_tokens_per_step=MAX_TOKENS_PER_STEP,
            max_batch_size=MAX_BATCH_SIZE,
            fit=fit_of(STEP_TIME),
            itl_s=itl_s,
        )
        self.max_tokens = max_sequence_tokens(
            self.groups,
            num_blocks=num_blocks,
            max_chunk=MAX_TOKENS_PER_STEP,
            block_size=BLOCK_SIZE,
            limit=240,
        )
        lock = threading.Condition()
        self.holds = Holds(self.pool, lock)
        self.fills = PrefixFills(
            groups=self.groups,
            block_size=BLOCK_SIZE,
            pool=self.pool,
            holds=self.holds,
            is_pool_promised=lambda: self.scheduler.is_pool_promised,
            lock=lock,
        )
        self.filling: list[tuple[Sequence, PrefixFill]] = []
        self.live: list[Sequence] = []
        self.lent: list[Sequence] = []
        self.reserved: list[Sequence] = []

    def new_sequence(
        self, kind: int, num_tokens: int, max_tokens: int, is_lent: bool = False
    ) -> Sequence:
        num_prompt = max(1, min(num_tokens, self.max_tokens - 1))
        max_tokens = max(1, min(max_tokens, self.max_tokens - num_prompt))
        sampling = sampling_params(max_tokens=max_tokens)
        request = request_of(PROMPTS[kind][:num_prompt], sampling)
        return Sequence.from_request(request, 0, is_lent=is_lent)

    @rule(kind=KINDS, num_tokens=LENGTHS, max_tokens=st.integers(1, 80))
    def submit(self, kind: int, num_tokens: int, max_tokens: int) -> None:
        sequence = self.new_sequence(kind, num_tokens, max_tokens)
        self.scheduler.add(sequence)
        self.live.append(sequence)

    @rule(kind=KINDS, num_tokens=LENGTHS)
    def submit_lent(self, kind: int, num_tokens: int) -> None:
        sequence = self.new_sequence(kind, num_tokens, 2, is_lent=True)
        if self.scheduler.allocate(sequence, sequence.num_tokens):
            self.scheduler.add(sequence)
            self.live.append(sequence)

    @rule(kind=KINDS, num_tokens=LENGTHS, max_tokens=st.integers(2, 60), margin=st.integers(0, 60))
    def reserve(self, kind: int, num_tokens: int, max_tokens: int, margin: int) -> None:
        sequence = self.new_sequence(kind, num_tokens, max_tokens)
        num_available = self.pool.num_available_blocks
        if self.scheduler.reserve(sequence, min(margin, max_tokens)):
            self.reserved.append(sequence)
        else:
            assert self.pool.num_available_blocks == num_available

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def pulled(self, data: st.DataObject) -> None:
        sequence = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        for group, table in zip(self.groups, sequence.block_tables, strict=True):
            first = first_needed_block(group, sequence.num_tokens, BLOCK_SIZE)
            assert table.first_block == first
            assert table.end_block == num_blocks_of(sequence.num_tokens, BLOCK_SIZE)
            assert table.end_block - table.num_own_blocks <= sequence.num_tokens // BLOCK_SIZE
        self.kv.write_arrived(sequence)
        self.kv.assert_readable(sequence, sequence.num_tokens, sequence.num_tokens)
        prompt = sequence.request.prompt_token_ids
        sequence.arrive(tokens_alone(prompt, 1)[0])
        self.scheduler.add(sequence)
        self.live.append(sequence)

    @precondition(lambda self: self.reserved)
    @rule()
    def give_up_reservation(self) -> None:
        self.scheduler.release(self.reserved.pop(0))

    @rule(kind=KINDS, num_tokens=LENGTHS)
    def begin_fill(self, kind: int, num_tokens: int) -> None:
        prompt = self.new_sequence(kind, num_tokens, 1)
        self.prefix_cache.hash(prompt)
        num_available = self.pool.num_available_blocks
        fill = self.fills.begin(prompt.prefix_hashes, prompt.num_tokens)
        if fill is not None:
            self.filling.append((prompt, fill))
        else:
            assert self.pool.num_available_blocks == num_available

    @precondition(lambda self: self.filling)
    @rule(data=st.data())
    def filled(self, data: st.DataObject) -> None:
        prompt, fill = self.filling.pop(data.draw(st.integers(0, len(self.filling) - 1)))
        self.kv.write_filled(fill, prompt.request.prompt_token_ids)
        self.fills.finish(fill)
        found = self.prefix_cache.find(prompt).num_computed_tokens
        num_filled = prompt.num_tokens // BLOCK_SIZE * BLOCK_SIZE
        assert found == min(num_filled, prompt.num_tokens - 1)

    @precondition(lambda self: self.filling)
    @rule()
    def abandon_fill(self) -> None:
        self.fills.abandon(self.filling.pop(0)[1])

    @precondition(lambda self: self.lent)
    @rule()
    def lease_ends(self) -> None:
        self.scheduler.release(self.lent.pop(0))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.end(self.live[data.draw(st.integers(0, len(self.live) - 1))], is_lent=False)

    @rule()
    def step(self) -> None:
        had_work = self.scheduler.has_work
        oldest = self.oldest_running()
        plan = self.scheduler.schedule()
        assert bool(plan.chunks or plan.num_preemptions) == had_work
        assert plan.num_tokens <= MAX_TOKENS_PER_STEP
        assert self.scheduler.num_running <= MAX_BATCH_SIZE
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)
        assert all(chunk.sequence.is_decoding for chunk in plan.chunks[: plan.num_decodes])
        self.assert_the_oldest_goes_on(oldest, plan)
        self.assert_in_time(plan)
        token_ids = self.kv.run(plan)
        for chunk in plan.chunks:
            self.scheduler.advance(chunk)
            if chunk.sequence in token_ids:
                self.sample(chunk.sequence, token_ids[chunk.sequence])

    def oldest_running(self) -> Sequence | None:
        running = [each for each in self.live if each.state is SequenceState.RUNNING]
        return min(running, key=lambda each: each.age, default=None)

    def assert_the_oldest_goes_on(self, before: Sequence | None, plan: StepPlan) -> None:
        """``before`` was the oldest until this step was planned."""
        if before is not None and before.state is not SequenceState.RUNNING:
            lent = [each for each in self.live if each.is_lent]
            promised = [*self.lent, *self.reserved, *self.filling, *lent]
            assert promised, "the oldest was preempted, and nobody holds what cannot be taken"
        oldest = self.oldest_running()
        if oldest is not None:
            computed = {chunk.sequence: chunk.num_tokens for chunk in plan.chunks}
            assert oldest in computed
            if oldest is before:
                least = MIN_CHUNK_TOKENS if self.itl_s is None else FLOOR_TOKENS
                wanted = min(least, oldest.num_uncomputed_tokens)
                assert computed[oldest] >= wanted, "others had a part of what the oldest could use"

    def assert_in_time(self, plan: StepPlan) -> None:
        num_prefill_tokens = plan.num_tokens - plan.num_decodes
        if self.itl_s is not None and plan.num_decodes and num_prefill_tokens > FLOOR_TOKENS:
            assert STEP_TIME.step_s(plan.work) <= self.itl_s * 1.001

    def sample(self, sequence: Sequence, token_id: int) -> None:
        sequence.output_token_ids.append(token_id)
        num_outputs = len(sequence.output_token_ids)
        if sequence.is_lent:
            assert not sequence.stock
            self.kv.assert_publishable(sequence)
            self.end(sequence, is_lent=True)
        elif num_outputs >= sequence.request.sampling.max_tokens:
            prompt = sequence.request.prompt_token_ids
            assert sequence.output_token_ids == tokens_alone(prompt, num_outputs)
            self.end(sequence, is_lent=False)

    def end(self, sequence: Sequence, is_lent: bool) -> None:
        self.scheduler.remove(sequence)
        self.live.remove(sequence)
        if is_lent:
            self.lent.append(sequence)
        else:
            self.scheduler.release(sequence)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.pool.check_integrity()
        held: set[int] = set()
        own: list[int] = []
        for each in [*self.live, *self.lent, *self.reserved, *self.fill_holds()]:
            held |= set(each.block_ids)
            own += [id_ for id_ in each.block_ids if id_ not in self.pool.index]
        assert len(held) == self.pool.num_held_blocks
        assert len(own) == len(set(own)), "a block that nobody may find has two holders"

    def fill_holds(self) -> list[BlockHold]:
        return [fill.hold for _, fill in self.filling]

    @invariant()
    def queues_hold_the_live(self) -> None:
        assert self.scheduler.num_waiting + self.scheduler.num_running == len(self.live)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        # Every step brings the oldest that runs nearer to its end; it can lose that only to an
        # older one that starts, of which there are fewer than sequences.
        max_steps = len(self.live) * sum(map(steps_alone, self.live))
        num_steps = 0
        while self.live or self.lent or self.reserved or self.filling:
            for sequence in [*self.lent, *self.reserved]:
                self.scheduler.release(sequence)
            self.lent, self.reserved = [], []
            while self.filling:
                self.abandon_fill()
            if self.live:
                assert self.scheduler.has_work, "sequences wait, and nothing holds them up"
                assert num_steps < max_steps, "some sequence starves"
                self.step()
                num_steps += 1
        assert self.pool.num_available_blocks == self.pool.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
