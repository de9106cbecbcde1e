"""Stands for the KV arena and the model where only the scheduler is real.

A slot holds a digest of the whole token history that its key was computed from, so what a query
reads says whether the right blocks were shared, copied and kept; the next token depends on all
that history.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from hashlib import blake2b

from pdray.core.step_time_fit import StepTimeFit
from pdray.engine.block_needs import first_needed_block
from pdray.engine.prefix_cache import PrefixCache
from pdray.engine.prefix_fill import PrefixFill
from pdray.engine.scheduler import ScheduledChunk, Scheduler, StepPlan
from pdray.engine.seats import Seats
from pdray.engine.sequence import Sequence
from pdray.engine.sequence_blocks import SequenceBlocks
from pdray.engine.step_budget import KnownStepTimes, StepBudget
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup

VOCAB_SIZE = 50


def groups_of(windows: Iterable[int | None]) -> tuple[KVGroup, ...]:
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


def scheduler_of(
    groups: tuple[KVGroup, ...],
    pool: BlockPool,
    *,
    block_size: int,
    max_tokens_per_step: int,
    max_batch_size: int,
    fit: KnownStepTimes | None = None,
    itl_s: float | None = None,
) -> tuple[Scheduler, PrefixCache]:
    prefix_cache = PrefixCache(groups=groups, block_size=block_size, pool=pool, model_digest="m")
    blocks = SequenceBlocks(
        groups=groups,
        block_size=block_size,
        pool=pool,
        prefix_cache=prefix_cache,
        max_chunk=max_tokens_per_step,
    )
    budget = StepBudget(
        StepTimeFit() if fit is None else fit,
        max_tokens_per_step=max_tokens_per_step,
        max_batch_size=max_batch_size,
        itl_s=itl_s,
    )
    seats = Seats(budget, max_wait_s=math.inf, clock=lambda: 0.0)
    return Scheduler(blocks, budget, seats), prefix_cache


def digest_after(digest: bytes, token_id: int) -> bytes:
    return blake2b(digest + token_id.to_bytes(4, "little"), digest_size=8).digest()


def next_token(digest: bytes) -> int:
    return digest[0] % VOCAB_SIZE


def tokens_alone(prompt: Iterable[int], num_tokens: int) -> list[int]:
    """What a sequence says that nothing ever happens to."""
    digest = digests_of(prompt)[-1]
    outputs: list[int] = []
    for _ in range(num_tokens):
        outputs.append(next_token(digest))
        digest = digest_after(digest, outputs[-1])
    return outputs


class WrittenKV:
    """What every slot of every block holds, and the checks that go with touching it."""

    def __init__(self, groups: tuple[KVGroup, ...], pool: BlockPool, block_size: int) -> None:
        self._groups = groups
        self._pool = pool
        self._block_size = block_size
        self._slots: dict[int, list[tuple[int, int, bytes] | None]] = {}

    def run(self, plan: StepPlan) -> dict[Sequence, int]:
        """One step: copies, then writes, then reads; the tokens of the sequences at their end."""
        sources = {source for chunk in plan.chunks for source, _ in chunk.copies}
        for chunk in plan.chunks:
            for source, target in chunk.copies:
                assert target not in sources
                assert target not in self._pool.index, "a block that others may find is written"
                self._slots[target] = list(self._slots[source])
        for chunk in plan.chunks:
            self._write(chunk.sequence, chunk.start, chunk.end)
        tokens = {chunk.sequence: self._read(chunk) for chunk in plan.chunks}
        return {chunk.sequence: tokens[chunk.sequence] for chunk in plan.chunks if chunk.is_last}

    def write_arrived(self, seq: Sequence) -> None:
        """As a pull does: all that its tables have room for, and that is not shared."""
        for group, table in zip(self._groups, seq.block_tables, strict=True):
            self._write(seq, table.first_own_block * self._block_size, seq.num_tokens, [group])

    def write_filled(self, fill: PrefixFill, token_ids: Iterable[int]) -> None:
        """As a read does that fills the prefix cache, of a prefix of these tokens."""
        digests = digests_of(token_ids)
        for run in fill.missing:
            for number, block_id in enumerate(run.block_ids, run.first_block):
                assert block_id not in self._pool.index, "a block that others may find is written"
                start = number * self._block_size
                self._slots[block_id] = [
                    (run.group_id, position, digests[position])
                    for position in range(start, start + self._block_size)
                ]

    def _write(
        self, seq: Sequence, start: int, end: int, groups: Iterable[KVGroup] | None = None
    ) -> None:
        digests = self._digests(seq)
        for group in groups or self._groups:
            for position in range(start, end):
                block_id, offset = self._slot(seq, group, position)
                assert block_id not in self._pool.index, "a block that others may find is written"
                if offset == 0:
                    self._slots[block_id] = [None] * self._block_size
                self._slots[block_id][offset] = (group.group_id, position, digests[position])

    def _read(self, chunk: ScheduledChunk) -> int:
        self.assert_readable(chunk.sequence, chunk.start, chunk.end)
        return next_token(self._digests(chunk.sequence)[chunk.end - 1])

    def assert_readable(self, seq: Sequence, start: int, end: int) -> None:
        """All that the queries at [start, end) see is there, and is of this sequence's tokens."""
        digests = self._digests(seq)
        for group in self._groups:
            window = group.sliding_window
            first = 0 if window is None else max(0, start - window + 1)
            for position in range(first, end):
                block_id, offset = self._slot(seq, group, position)
                expected = (group.group_id, position, digests[position])
                assert self._slots[block_id][offset] == expected

    def assert_publishable(self, seq: Sequence) -> None:
        """All that decode must pull is there."""
        for group in self._groups:
            first = first_needed_block(group, seq.num_prefill_tokens, self._block_size)
            for position in range(first * self._block_size, seq.num_prefill_tokens):
                block_id, offset = self._slot(seq, group, position)
                held = self._slots[block_id][offset]
                assert held == (group.group_id, position, self._digests(seq)[position])

    def _slot(self, seq: Sequence, group: KVGroup, position: int) -> tuple[int, int]:
        table = seq.block_tables[group.group_id]
        index = position // self._block_size - table.first_block
        assert index >= 0, f"position {position} has left its window"
        return table.block_ids[index], position % self._block_size

    def _digests(self, seq: Sequence) -> list[bytes]:
        return digests_of(seq.token_ids(0, seq.num_tokens))


def digests_of(token_ids: Iterable[int]) -> list[bytes]:
    """After each of them."""
    return list(itertools.accumulate(token_ids, digest_after, initial=b""))[1:]
