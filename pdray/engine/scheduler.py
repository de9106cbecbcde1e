"""Continuous batching: which tokens of which sequences the next step computes.

Decodes first, one token each; what is left of the step's budget goes to prompts, in chunks,
first come first served. Pure: it moves block ids, never bytes. Not thread-safe: the engine
holds its lock around every call.
"""

from __future__ import annotations

import bisect
import itertools
from collections import deque
from dataclasses import dataclass

from pdray.engine.block_needs import first_needed_block, missing_blocks, num_blocks_of
from pdray.engine.sequence import BlockTable, Sequence, SequenceState
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens at positions [start, start + num_tokens) of a sequence, one step's work."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_last(self) -> bool:
        """Of the tokens known now: the next token is sampled from its last position."""
        return self.end == self.sequence.num_tokens


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


class Scheduler:
    """Queues, block tables and preemption.

    Every running prompt holds blocks (tables and stock) for all its known tokens, so only
    decodes ask the pool for more. Where it has none, the youngest sequence is preempted, so
    the oldest always goes on.
    """

    def __init__(
        self,
        *,
        groups: tuple[KVGroup, ...],
        block_size: int,
        pool: BlockPool,
        max_tokens_per_step: int,
        max_batch_size: int,
    ) -> None:
        self._groups = groups
        self._block_size = block_size
        self._pool = pool
        self._max_tokens_per_step = max_tokens_per_step
        self._max_batch_size = max_batch_size
        self._waiting: deque[Sequence] = deque()
        self._ready: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
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
    def has_work(self) -> bool:
        """Whether ``schedule`` would find something to compute, or to preempt."""
        if self._running or self._ready:
            return True
        return bool(self._waiting) and self._can_start(self._waiting[0])

    # Blocks before a sequence runs

    def allocate(self, seq: Sequence, num_tokens: int) -> bool:
        """Takes all blocks that the sequence can need to compute ``num_tokens``, or none."""
        return not self._is_pool_promised and self._allocate(seq, num_tokens)

    def reserve(self, seq: Sequence, num_margin_tokens: int) -> bool:
        """Takes all blocks for the sequence's tokens, whose KV is computed elsewhere and will be
        written here, and for ``num_margin_tokens`` more to be computed here; or none."""
        if self._is_pool_promised:
            return False
        num_tokens = seq.num_tokens
        tables = [
            BlockTable(first_needed_block(group, num_tokens, self._block_size))
            for group in self._groups
        ]
        num_blocks = [
            num_blocks_of(num_tokens, self._block_size) - table.first_block for table in tables
        ]
        block_ids = self._pool.allocate(sum(num_blocks))
        if block_ids is None:
            return False
        for table, count in zip(tables, num_blocks, strict=True):
            table.block_ids = block_ids[:count]
            del block_ids[:count]
        target = num_tokens + num_margin_tokens
        margin = missing_blocks(
            self._groups,
            tables,
            computed=num_tokens,
            target=target,
            max_chunk=1,
            block_size=self._block_size,
        )
        stock = self._pool.allocate(margin)
        if stock is None:
            for table in tables:
                self._pool.release(table.block_ids)
            return False
        seq.block_tables, seq.stock, seq.allocated_tokens = tables, stock, target
        return True

    @property
    def _is_pool_promised(self) -> bool:
        """A sequence waits for blocks: newcomers must not starve it."""
        return bool(self._waiting) and not self._can_start(self._waiting[0])

    def _allocate(self, seq: Sequence, num_tokens: int) -> bool:
        self._make_tables(seq)
        stock = self._pool.allocate(self._num_missing(seq, num_tokens))
        if stock is None:
            return False
        # Stock is used from its end: ascending ids make runs that a reader can join.
        seq.stock += reversed(stock)
        seq.allocated_tokens = max(seq.allocated_tokens, num_tokens)
        return True

    def _make_tables(self, seq: Sequence) -> None:
        if not seq.block_tables:
            seq.block_tables = [BlockTable() for _ in self._groups]

    def _num_missing(self, seq: Sequence, num_tokens: int) -> int:
        """Blocks that it must get from the pool to compute ``num_tokens``."""
        return max(0, self._num_missing_of_tables(seq, num_tokens) - len(seq.stock))

    def _num_missing_of_tables(self, seq: Sequence, num_tokens: int) -> int:
        return missing_blocks(
            self._groups,
            seq.block_tables,
            computed=seq.num_computed_tokens,
            target=num_tokens,
            max_chunk=1 if seq.is_decoding else self._max_tokens_per_step,
            block_size=self._block_size,
        )

    # Queues

    def add(self, seq: Sequence) -> None:
        """To those that hold their blocks and need a seat, or to those that wait for blocks."""
        assert seq.state is SequenceState.NEW, f"{seq.request_id} was added twice"
        seq.age = next(self._ages)
        self._make_tables(seq)
        if seq.num_computed_tokens or seq.allocated_tokens >= seq.num_tokens:
            seq.state = SequenceState.READY
            self._ready.append(seq)
        else:
            seq.state = SequenceState.WAITING
            self._waiting.append(seq)

    def find(self, request_id: str, attempt: int) -> Sequence | None:
        for seq in itertools.chain(self._waiting, self._ready, self._running):
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
        seq.state = SequenceState.ENDED

    def release(self, seq: Sequence) -> None:
        """All its blocks back to the pool."""
        self._pool.release(seq.block_ids)
        seq.drop_blocks()

    # A step

    def schedule(self) -> StepPlan:
        """The next step's work, with blocks in the tables for every token of it."""
        while self._ready and len(self._running) < self._max_batch_size:
            self._run(self._ready.popleft())
        num_preemptions = self._num_preemptions
        decodes = self._schedule_decodes()
        prompts = self._schedule_prompts(self._max_tokens_per_step - len(decodes))
        num_preemptions = self._num_preemptions - num_preemptions
        return StepPlan((*decodes, *prompts), len(decodes), num_preemptions)

    def _schedule_decodes(self) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        for seq in list(self._running):
            was_preempted = seq.state is not SequenceState.RUNNING
            if was_preempted or not seq.is_decoding:
                continue
            if self._find_room(seq):
                chunks.append(self._take_chunk(seq, 1))
        return chunks

    def _schedule_prompts(self, budget: int) -> list[ScheduledChunk]:
        chunks: list[ScheduledChunk] = []
        prompts = deque(seq for seq in self._running if not seq.is_decoding)
        while budget:
            seq = prompts.popleft() if prompts else self._start_next()
            if seq is None:
                break
            chunks.append(self._take_chunk(seq, min(budget, seq.num_uncomputed_tokens)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _start_next(self) -> Sequence | None:
        if not self._waiting or len(self._running) >= self._max_batch_size:
            return None
        seq = self._waiting[0]
        if not self._can_start(seq) or not self._allocate(seq, seq.num_tokens):
            return None
        self._waiting.popleft()
        self._run(seq)
        return seq

    def _can_start(self, seq: Sequence) -> bool:
        """Its blocks are there, and one more of each group for those that run already, or it
        would be preempted at once."""
        missing = self._num_missing(seq, seq.num_tokens)
        growth = len(self._running) * len(self._groups)
        return missing == 0 or missing + growth <= self._pool.num_free_blocks

    def _run(self, seq: Sequence) -> None:
        seq.state = SequenceState.RUNNING
        bisect.insort(self._running, seq, key=lambda each: each.age)

    def _take_chunk(self, seq: Sequence, num_tokens: int) -> ScheduledChunk:
        """Moves blocks for the chunk from the sequence's stock to its tables."""
        chunk = ScheduledChunk(seq, seq.num_computed_tokens, num_tokens)
        end_block = num_blocks_of(chunk.end, self._block_size)
        for table in seq.block_tables:
            while table.end_block < end_block:
                table.block_ids.append(seq.stock.pop())
        return chunk

    def _find_room(self, seq: Sequence) -> bool:
        """Blocks for the sequence's next token, from younger ones if it must be; False where it
        was preempted itself."""
        while (missing := self._num_missing(seq, seq.num_tokens)) > self._pool.num_free_blocks:
            victim = self._youngest()
            self._preempt(victim)
            if victim is seq:
                return False
        seq.stock += self._pool.allocate(missing) or []
        return True

    def _youngest(self) -> Sequence:
        # A lent sequence's blocks are promised to a reader, and it holds all that it needs.
        candidates = itertools.chain(self._running, self._ready)
        return max((seq for seq in candidates if not seq.is_lent), key=lambda seq: seq.age)

    def _preempt(self, seq: Sequence) -> None:
        """Takes all its blocks; it is computed again, output included, before all others."""
        self.remove(seq)
        self.release(seq)
        self._make_tables(seq)
        seq.num_computed_tokens = 0
        seq.state = SequenceState.WAITING
        self._waiting.appendleft(seq)
        self._num_preemptions += 1

    # After a step

    def advance(self, chunk: ScheduledChunk) -> None:
        """The chunk is computed: blocks that fell out of a window, and stock that can't be
        needed any more, go back."""
        seq = chunk.sequence
        seq.num_computed_tokens = chunk.end
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            first = first_needed_block(group, chunk.end, self._block_size)
            num_dropped = max(0, first - table.first_block)
            seq.stock += table.block_ids[:num_dropped]
            del table.block_ids[:num_dropped]
            table.first_block += num_dropped
        num_missing = self._num_missing_of_tables(seq, seq.allocated_tokens)
        num_surplus = max(0, len(seq.stock) - num_missing)
        self._pool.release(seq.stock[:num_surplus])
        del seq.stock[:num_surplus]
