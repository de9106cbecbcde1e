"""Continuous batching: which tokens of which sequences the next step computes.

Decodes first, one token each; what is left of the step's budget, in tokens and in time
(step_budget.py), goes to prompts, in chunks, first come first served. Pure: it moves block ids,
never bytes. Not thread-safe: the engine holds its lock around every call.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pdray.core.step_time import StepWork
from pdray.engine.seats import Seats
from pdray.engine.sequence import Sequence, SequenceState
from pdray.engine.sequence_blocks import SequenceBlocks, Start
from pdray.engine.step_budget import StepBudget


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens at positions [start, start + num_tokens) of a sequence, one step's work."""

    sequence: Sequence
    start: int
    num_tokens: int
    copies: tuple[tuple[int, int], ...] = ()
    """Blocks whose bytes must be in others before anything is written: from, to."""

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_last(self) -> bool:
        """Of the tokens that there are: the next token is sampled from its last position."""
        return self.end >= self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Work of one step: ``num_decodes`` chunks of one decode token each, then prompts' chunks."""

    chunks: tuple[ScheduledChunk, ...]
    num_decodes: int
    num_preemptions: int
    """Sequences whose blocks were taken to make room for it."""

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def work(self) -> StepWork:
        work = work_of_decodes(self.chunks[: self.num_decodes])
        for chunk in self.chunks[self.num_decodes :]:
            work = work.with_chunk(chunk.start, chunk.num_tokens)
        return work


def work_of_decodes(chunks: Iterable[ScheduledChunk]) -> StepWork:
    """Of one token each."""
    contexts = [chunk.end for chunk in chunks]
    return StepWork(num_decodes=len(contexts), num_context_tokens=sum(contexts))


class Scheduler:
    """Queues and preemption.

    Every running prompt holds blocks (tables and stock) for all its known tokens, so only
    decodes ask the pool for more. Where it has none, the youngest sequence is preempted, so
    the oldest always goes on.
    """

    def __init__(self, blocks: SequenceBlocks, budget: StepBudget, seats: Seats) -> None:
        self._blocks = blocks
        self._budget = budget
        self._seats = seats
        self._waiting: deque[Sequence] = deque()
        self._ready: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self._paused: list[Sequence] = []
        self._ages = itertools.count()
        self._num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._ready)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def prefill_backlog_tokens(self) -> int:
        """Prompt tokens that are queued here and not computed yet."""
        prompts = itertools.chain(self._waiting, self._ready, self._running)
        return sum(seq.num_uncomputed_tokens for seq in prompts if not seq.is_decoding)

    @property
    def decode_work(self) -> StepWork:
        """One token of each that decodes."""
        contexts = [seq.num_tokens for seq in self._running if seq.is_decoding]
        return StepWork(num_decodes=len(contexts), num_context_tokens=sum(contexts))

    def has_room(self, num_taken: int) -> bool:
        """For one more to decode here, beside ``num_taken`` who do, or will."""
        return self._seats.has_room(num_taken, self.decode_work)

    @property
    def has_work(self) -> bool:
        """Whether ``schedule`` would find something to compute, or to preempt."""
        if self._running or self._ready:
            return True
        return self._find_next_start() is not None

    # Blocks before a sequence runs

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Takes all blocks that the sequence can need to compute ``num_tokens``, those that the
        prefix cache has of it among them, or none."""
        if self.is_pool_promised:
            return False
        start = self._blocks.find_start(seq, num_tokens, num_spare=0)
        if start is None:
            return False
        self._blocks.take_start(seq, num_tokens, start)
        return True

    def reserve(
        self, seq: Sequence, num_margin_tokens: int, may_arrive_longer: bool = False
    ) -> bool:
        """Takes all blocks for the sequence's tokens, whose KV is computed elsewhere and will be
        written here where it is not shared, and for ``num_margin_tokens`` more to be computed
        here, or there; or none."""
        if self.is_pool_promised:
            return False
        if not self._blocks.reserve(seq, num_margin_tokens, may_arrive_longer):
            return False
        self._seats.take()
        return True

    @property
    def is_pool_promised(self) -> bool:
        """A sequence waits for blocks: newcomers must not starve it."""
        return bool(self._waiting) and self._find_next_start() is None

    def _find_next_start(self) -> Start | None:
        """The first in the queue has its blocks, and those that run already have one more of each
        group, or it would be preempted at once."""
        if not self._waiting:
            return None
        seq = self._waiting[0]
        num_spare = len(self._running) * self._blocks.num_groups
        return self._blocks.find_start(seq, seq.num_tokens, num_spare=num_spare)

    # Queues

    def add(self, seq: Sequence) -> None:
        """To those that hold their blocks and need a seat, or to those that wait for blocks."""
        assert seq.state is SequenceState.NEW, f"{seq.request_id} was added twice"
        seq.age = next(self._ages)
        self._blocks.make_tables(seq)
        if seq.has_arrived:
            self._blocks.fit_arrived(seq)
        if seq.num_computed_tokens:
            self._blocks.name_arrived(seq)
        if seq.is_decoding or seq.allocated_tokens >= seq.num_tokens:
            seq.state = SequenceState.READY
            self._ready.append(seq)
        else:
            seq.state = SequenceState.WAITING
            self._waiting.append(seq)

    def find(self, request_id: str, attempt: int) -> Sequence | None:
        for seq in itertools.chain(self._waiting, self._ready, self._running, self._paused):
            if seq.request_id == request_id and seq.attempt == attempt:
                return seq
        return None

    def remove(self, seq: Sequence) -> None:
        """Out of every queue, for good; its blocks stay with it. Does nothing to one that has
        ended, or was never added."""
        match seq.state:
            case SequenceState.NEW:
                return
            case SequenceState.WAITING:
                self._waiting.remove(seq)
            case SequenceState.READY:
                self._ready.remove(seq)
            case SequenceState.RUNNING:
                self._running.remove(seq)
            case SequenceState.PAUSED:
                self._paused.remove(seq)
        seq.state = SequenceState.ENDED

    def pause(self, seq: Sequence) -> None:
        """A running sequence leaves the batch, with its blocks, which nobody takes from it."""
        assert seq.state is SequenceState.RUNNING, f"{seq.request_id} is {seq.state}"
        self._running.remove(seq)
        self._paused.append(seq)
        seq.state = SequenceState.PAUSED

    def resume(self, seq: Sequence) -> None:
        """It has the next free seat, and goes on from where it was."""
        assert seq.state is SequenceState.PAUSED, f"{seq.request_id} is {seq.state}"
        self._paused.remove(seq)
        self._ready.appendleft(seq)
        seq.state = SequenceState.READY

    def release(self, seq: Sequence) -> None:
        """All its blocks back to the pool."""
        self._blocks.release(seq)

    def forget(self, seq: Sequence) -> None:
        """Nobody may find what it computed: it is not to be trusted."""
        self._blocks.forget(seq)

    # A step

    def schedule(self) -> StepPlan:
        """The next step's work, with blocks in the tables for every token of it."""
        while self._ready and self._has_seat(self._ready[0]):
            self._run(self._ready.popleft())
        num_preemptions = self._num_preemptions
        decodes = self._schedule_decodes()
        prompts = self._schedule_prompts(work_of_decodes(decodes))
        num_preemptions = self._num_preemptions - num_preemptions
        return StepPlan((*decodes, *prompts), len(decodes), num_preemptions)

    def schedule_ahead(self, sequences: list[Sequence]) -> StepPlan | None:
        """What comes after a step that still runs: one more token of ``sequences``, which are
        those of it that will go on. None where a prompt should have a part in it, or blocks would
        have to be taken from somebody."""
        if self._has_newcomer() or not all(seq.is_decoding for seq in self._running):
            return None
        if not all(self._blocks.grow(seq, num_unread=1) for seq in sequences):
            return None
        return StepPlan(tuple(map(self._take_unread, sequences)), len(sequences), 0)

    def _has_newcomer(self) -> bool:
        if self._ready:
            return self._has_seat(self._ready[0])
        return self._find_next_start() is not None and self._has_seat(self._waiting[0])

    def _has_seat(self, seq: Sequence) -> bool:
        """A lent one leaves before it decodes; one that has tokens was let in before."""
        if seq.is_lent or seq.output_token_ids:
            return len(self._running) < self._budget.max_batch_size
        return self.has_room(len(self._running))

    def _take_unread(self, seq: Sequence) -> ScheduledChunk:
        # What had to be copied, the running step has copied.
        self._blocks.fill_tables(seq, seq.num_tokens + 1)
        return ScheduledChunk(seq, seq.num_tokens, 1)

    def _schedule_decodes(self) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for seq in list(self._running):
            was_preempted = seq.state is not SequenceState.RUNNING
            if was_preempted or not seq.is_decoding:
                continue
            self._begin(seq)
            if self._find_room(seq):
                chunks.append(self._take_chunk(seq, 1))
        return chunks

    def _schedule_prompts(self, work: StepWork) -> list[ScheduledChunk]:
        """Beside decodes that are ``work``."""
        chunks: list[ScheduledChunk] = []
        prompts = deque(seq for seq in self._running if not seq.is_decoding)
        max_tokens = self._budget.max_tokens_per_step - work.num_decodes
        while self._budget.chunk_tokens(work, 0, max_tokens):
            seq = prompts.popleft() if prompts else self._start_next()
            if seq is None:
                break
            self._begin(seq)
            start, num_left = seq.num_computed_tokens, seq.num_uncomputed_tokens
            num_tokens = self._budget.chunk_tokens(work, start, min(max_tokens, num_left))
            if num_tokens == 0:
                break
            chunks.append(self._take_chunk(seq, num_tokens))
            work = work.with_chunk(start, num_tokens)
            max_tokens -= num_tokens
        return chunks

    def _start_next(self) -> Sequence | None:
        start = self._find_next_start()
        if start is None or not self._has_seat(self._waiting[0]):
            return None
        seq = self._waiting.popleft()
        self._blocks.take_start(seq, seq.num_tokens, start)
        self._run(seq)
        return seq

    def _run(self, seq: Sequence) -> None:
        if not seq.is_lent and not seq.output_token_ids:
            self._seats.take()
        seq.state = SequenceState.RUNNING
        bisect.insort(self._running, seq, key=lambda each: each.age)

    def _begin(self, seq: Sequence) -> None:
        if seq.num_cached_tokens is None:
            self._blocks.begin(seq)

    def _take_chunk(self, seq: Sequence, num_tokens: int) -> ScheduledChunk:
        start = seq.num_computed_tokens
        copies = self._blocks.fill_tables(seq, start + num_tokens)
        return ScheduledChunk(seq, start, num_tokens, copies)

    def _find_room(self, seq: Sequence) -> bool:
        """Blocks for the sequence's next token, from younger ones if it must be; False where it
        was preempted itself."""
        while not self._blocks.grow(seq):
            victim = self._youngest()
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _youngest(self) -> Sequence:
        # A lent sequence's blocks are promised to a reader, and it holds all that it needs.
        candidates = itertools.chain(self._running, self._ready)
        return max((seq for seq in candidates if not seq.is_lent), key=lambda seq: seq.age)

    def _preempt(self, seq: Sequence) -> None:
        """Takes all its blocks; it is computed again, output included, before all others."""
        self.remove(seq)
        self.release(seq)
        seq.state = SequenceState.WAITING
        self._waiting.appendleft(seq)
        self._num_preemptions += 1

    # After a step

    def advance(self, chunk: ScheduledChunk) -> None:
        """The chunk is computed: blocks that it leaves behind go back."""
        self._blocks.advance(chunk.sequence, chunk.end)
