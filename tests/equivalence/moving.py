"""A migration without a wire: a running sequence's blocks are copied as a reader would pull them,
while it decodes on, and it goes on elsewhere."""

from __future__ import annotations

from pdray.engine.engine import Engine
from pdray.engine.holds import BlockHold
from pdray.engine.outputs import SequenceOutput
from pdray.engine.sequence import Sequence
from tests.engine_driver import sequence_of

MARGIN_TOKENS = 40


def step(engine: Engine, outputs: list[SequenceOutput]) -> None:
    if engine.wait_for_work(0.01):
        outputs += engine.step().sequences
        engine.pool.check_integrity()


def pause(engine: Engine, seq: Sequence, outputs: list[SequenceOutput]) -> bool:
    asked = engine.pausing.pause(seq)
    while not asked.done():
        step(engine, outputs)
    return asked.result()


class Move:
    """Of one sequence from one engine to another: ``copy`` as often as one likes, then ``end``."""

    def __init__(self, source: Engine, target: Engine, seq: Sequence) -> None:
        self._source = source
        self._target = target
        self._seq = seq
        self._hold = BlockHold()
        self._num_known = len(seq.output_token_ids) - 1
        self._copied: dict[int, int] = {}
        self.num_copied = 0
        self.taken = sequence_of(seq.request)
        self.taken.output_token_ids = seq.output_token_ids[: self._num_known]
        assert target.reserve(self.taken, MARGIN_TOKENS, may_arrive_longer=True)

    def copy(self) -> None:
        """What may be read by now, each block once: later it must not have changed."""
        _, runs = self._source.published.lend_decode(self._seq, self._hold)
        for run in runs:
            table = self.taken.block_tables[run.group_id]
            first = max(self._copied.get(run.group_id, table.first_own_block), run.first_block)
            end = max(first, run.first_block + len(run.block_ids))
            for number in range(first, end):
                self._target.storage.block(table.block_ids[number - table.first_block]).copy_(
                    self._source.storage.block(run.block_ids[number - run.first_block])
                )
                self.num_copied += 1
            self._copied[run.group_id] = end

    def end(self) -> Sequence:
        """The source's sequence, which is paused, is over; the target's has begun."""
        self.copy()
        self._source.holds.release(self._hold)
        self.taken.arrive(*self._seq.output_token_ids[self._num_known :])
        self._source.release(self._seq)
        self._target.add(self.taken)
        return self.taken

    def fail(self) -> None:
        self._source.holds.release(self._hold)
        self._target.release(self.taken)
