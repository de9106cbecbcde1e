"""The scheduler under any order of arrivals, cancellations and steps: no block is lost or shared,
budgets hold, prompts never run out of blocks, the oldest goes on, and all ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdray.engine.block_needs import first_needed_block, max_sequence_tokens, num_blocks_of
from pdray.engine.scheduler import Scheduler
from pdray.engine.sequence import Sequence, SequenceState
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from tests.engine_driver import request_of, sampling_params

BLOCK_SIZE = 4
MAX_TOKENS_PER_STEP = 10
MAX_BATCH_SIZE = 4


def groups_of(windows: list[int | None]) -> tuple[KVGroup, ...]:
    return tuple(
        KVGroup(
            group_id=index,
            layer_ids=(index,),
            sliding_window=window,
            num_kv_heads=1,
            k_head_dim=1,
            v_head_dim=1,
        )
        for index, window in enumerate(windows)
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Stands for the engine: every computed token is written down, with the block it went to."""

    @initialize(
        windows=st.lists(st.sampled_from([None, 1, 4, 6, 9]), min_size=1, max_size=3),
        num_blocks=st.integers(14, 40),
    )
    def start(self, windows: list[int | None], num_blocks: int) -> None:
        self.groups = groups_of(windows)
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            groups=self.groups,
            block_size=BLOCK_SIZE,
            pool=self.pool,
            max_tokens_per_step=MAX_TOKENS_PER_STEP,
            max_batch_size=MAX_BATCH_SIZE,
        )
        self.max_tokens = max_sequence_tokens(
            self.groups,
            num_blocks=num_blocks,
            max_chunk=MAX_TOKENS_PER_STEP,
            block_size=BLOCK_SIZE,
            limit=60,
        )
        self.live: list[Sequence] = []
        self.lent: list[Sequence] = []
        self.reserved: list[Sequence] = []
        # (block, offset) -> (sequence, group, position) last written there.
        self.written: dict[tuple[int, int], tuple[Sequence, int, int]] = {}

    def new_sequence(self, num_tokens: int, max_tokens: int, is_lent: bool = False) -> Sequence:
        num_prompt = max(1, min(num_tokens, self.max_tokens - 1))
        max_tokens = max(1, min(max_tokens, self.max_tokens - num_prompt))
        request = request_of(range(num_prompt), sampling_params(max_tokens=max_tokens))
        return Sequence.from_request(request, 0, is_lent=is_lent)

    @rule(num_tokens=st.integers(1, 50), max_tokens=st.integers(1, 30))
    def submit(self, num_tokens: int, max_tokens: int) -> None:
        sequence = self.new_sequence(num_tokens, max_tokens)
        self.scheduler.add(sequence)
        self.live.append(sequence)

    @rule(num_tokens=st.integers(1, 50))
    def submit_lent(self, num_tokens: int) -> None:
        sequence = self.new_sequence(num_tokens, 2, is_lent=True)
        if self.scheduler.allocate(sequence, sequence.num_tokens):
            self.scheduler.add(sequence)
            self.live.append(sequence)

    @rule(num_tokens=st.integers(1, 50), max_tokens=st.integers(2, 20), margin=st.integers(0, 20))
    def reserve(self, num_tokens: int, max_tokens: int, margin: int) -> None:
        sequence = self.new_sequence(num_tokens, max_tokens)
        num_free = self.pool.num_free_blocks
        if self.scheduler.reserve(sequence, min(margin, max_tokens)):
            self.reserved.append(sequence)
        else:
            assert self.pool.num_free_blocks == num_free

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def pulled(self, data: st.DataObject) -> None:
        sequence = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        for group, table in zip(self.groups, sequence.block_tables, strict=True):
            first = first_needed_block(group, sequence.num_tokens, BLOCK_SIZE)
            assert table.first_block == first
            assert table.end_block == num_blocks_of(sequence.num_tokens, BLOCK_SIZE)
            for position in range(first * BLOCK_SIZE, sequence.num_tokens):
                self.write(sequence, group.group_id, position)
        sequence.arrive(0)
        self.scheduler.add(sequence)
        self.live.append(sequence)

    @precondition(lambda self: self.reserved)
    @rule()
    def give_up_reservation(self) -> None:
        self.scheduler.release(self.reserved.pop(0))

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
        plan = self.scheduler.schedule()
        assert bool(plan.chunks or plan.num_preemptions) == had_work
        assert plan.num_tokens <= MAX_TOKENS_PER_STEP
        assert self.scheduler.num_running <= MAX_BATCH_SIZE
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)
        assert all(chunk.sequence.is_decoding for chunk in plan.chunks[: plan.num_decodes])
        if self.live and plan.chunks:
            self.assert_the_oldest_runs([chunk.sequence for chunk in plan.chunks])
        for chunk in plan.chunks:
            for group in self.groups:
                for position in range(chunk.start, chunk.end):
                    self.write(chunk.sequence, group.group_id, position)
                self.assert_readable(chunk.sequence, group, chunk.start, chunk.end)
        for chunk in plan.chunks:
            is_last = chunk.is_last
            self.scheduler.advance(chunk)
            if is_last:
                self.sample(chunk.sequence)

    def assert_the_oldest_runs(self, scheduled: list[Sequence]) -> None:
        running = [each for each in self.live if each.state is SequenceState.RUNNING]
        oldest = min(running, key=lambda each: each.age)
        if oldest.is_decoding:
            assert oldest in scheduled

    def write(self, sequence: Sequence, group_id: int, position: int) -> None:
        self.written[self.slot(sequence, group_id, position)] = (sequence, group_id, position)

    def slot(self, sequence: Sequence, group_id: int, position: int) -> tuple[int, int]:
        table = sequence.block_tables[group_id]
        index = position // BLOCK_SIZE - table.first_block
        assert index >= 0, f"position {position} has left its window"
        return table.block_ids[index], position % BLOCK_SIZE

    def assert_readable(self, sequence: Sequence, group: KVGroup, start: int, end: int) -> None:
        """All that the step's queries see is where it was written, and was not written over."""
        first = 0 if group.sliding_window is None else max(0, start - group.sliding_window + 1)
        for position in range(first, end):
            slot = self.slot(sequence, group.group_id, position)
            assert self.written[slot] == (sequence, group.group_id, position)

    def sample(self, sequence: Sequence) -> None:
        sequence.output_token_ids.append(0)
        num_outputs = len(sequence.output_token_ids)
        if sequence.is_lent:
            self.assert_publishable(sequence)
            self.end(sequence, is_lent=True)
        elif num_outputs >= sequence.request.sampling.max_tokens:
            self.end(sequence, is_lent=False)

    def assert_publishable(self, sequence: Sequence) -> None:
        assert not sequence.stock
        for group in self.groups:
            first = first_needed_block(group, sequence.num_prefill_tokens, BLOCK_SIZE)
            for position in range(first * BLOCK_SIZE, sequence.num_prefill_tokens):
                slot = self.slot(sequence, group.group_id, position)
                assert self.written[slot] == (sequence, group.group_id, position)

    def end(self, sequence: Sequence, is_lent: bool) -> None:
        self.scheduler.remove(sequence)
        self.live.remove(sequence)
        if is_lent:
            self.lent.append(sequence)
        else:
            self.scheduler.release(sequence)

    @invariant()
    def every_block_has_one_holder(self) -> None:
        self.pool.check_integrity()
        holders = [*self.live, *self.lent, *self.reserved]
        held = [block_id for each in holders for block_id in each.block_ids]
        assert len(held) == len(set(held)) == self.pool.num_held_blocks

    @invariant()
    def queues_hold_the_live(self) -> None:
        assert self.scheduler.num_waiting + self.scheduler.num_running == len(self.live)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for _ in range(5000):
            for sequence in [*self.lent, *self.reserved]:
                self.scheduler.release(sequence)
            self.lent, self.reserved = [], []
            if not self.live:
                break
            assert self.scheduler.has_work, "sequences wait, and nothing holds them up"
            self.step()
        assert not self.live, "some sequence never ends"
        assert self.pool.num_free_blocks == self.pool.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
