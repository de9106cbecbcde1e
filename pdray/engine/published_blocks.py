"""Which of a sequence's blocks a peer may read by now."""

from __future__ import annotations

import threading

from pdray.core.handoff import BlockRun
from pdray.engine.holds import BlockHold, Holds
from pdray.engine.sequence import Sequence
from pdray.engine.sequence_blocks import SequenceBlocks


class PublishedBlocks:
    """Nothing writes into them any more. Any thread may call: ``lock`` is the engine's.

    What is lent, ``hold`` holds from then on, whatever becomes of the sequence.
    """

    def __init__(self, blocks: SequenceBlocks, holds: Holds, lock: threading.Condition) -> None:
        self._blocks = blocks
        self._holds = holds
        self._lock = lock

    def of_prompt(self, seq: Sequence, ready_tokens: int) -> tuple[BlockRun, ...]:
        """Once ``ready_tokens`` of it are computed. Only those that decode needs, which begin at
        the prompt's last window."""
        with self._lock:
            return self._blocks.runs(seq, ready_tokens)

    def lend_prompt(
        self, seq: Sequence, ready_tokens: int, hold: BlockHold
    ) -> tuple[BlockRun, ...]:
        with self._lock:
            return self._lend(self._blocks.runs(seq, ready_tokens), hold)

    def lend_decode(self, seq: Sequence, hold: BlockHold) -> tuple[int, tuple[BlockRun, ...]]:
        """Of one that decodes, and how many tokens' KV they have: whole blocks while it runs, all
        that is computed of a paused one. Nothing where it lost its blocks, or has ended."""
        with self._lock:
            ready_tokens, runs = self._blocks.decode_runs(seq)
            return ready_tokens, self._lend(runs, hold)

    def _lend(self, runs: tuple[BlockRun, ...], hold: BlockHold) -> tuple[BlockRun, ...]:
        self._holds.retain(hold, (block_id for run in runs for block_id in run.block_ids))
        return runs
