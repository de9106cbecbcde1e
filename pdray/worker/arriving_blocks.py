"""Which published blocks go where, each once, as the watermarks of a handoff come in."""

from __future__ import annotations

from collections.abc import Sequence

from pdray.core.handoff import BlockRun, Watermark
from pdray.engine.sequence import BlockTable
from pdray.transfer.reshard_plan import ReshardPlan


class ArrivingBlocks:
    """Of one sequence. ``plan`` is None where the owner's layout is ours."""

    def __init__(
        self, tables: Sequence[BlockTable], block_size: int, plan: ReshardPlan | None
    ) -> None:
        self._tables = tables
        self._block_size = block_size
        self._plan = plan
        self._next_tokens: dict[int, int] = {}

    def take_new(self, watermark: Watermark) -> tuple[list[int], list[int]]:
        """Remote and local ids of published blocks, or units of them, that no read was started
        for yet, but of those that the prefix cache had here."""
        remote: list[int] = []
        local: list[int] = []
        for run in watermark.runs:
            table = self._tables[run.group_id]
            start = self._next_tokens.get(run.group_id, table.first_own_block * self._block_size)
            if self._plan is None:
                theirs, ours, end = self._whole_blocks(run, table, start // self._block_size)
            else:
                theirs, ours, end = self._plan.read(
                    run,
                    first_block=table.first_block,
                    block_ids=table.block_ids,
                    start_token=start,
                    is_last=watermark.first_token_id is not None,
                )
            remote += theirs
            local += ours
            self._next_tokens[run.group_id] = end
            self._mark_incomplete(run, table)
        return remote, local

    def _whole_blocks(
        self, run: BlockRun, table: BlockTable, first: int
    ) -> tuple[list[int], list[int], int]:
        # A decode's window moves on meanwhile: what has left it is not published any more.
        first = max(first, run.first_block)
        end = max(first, run.end_block)
        theirs = list(run.block_ids[first - run.first_block :])
        ours = table.block_ids[first - table.first_block : end - table.first_block]
        return theirs, ours, end * self._block_size

    def _mark_incomplete(self, run: BlockRun, table: BlockTable) -> None:
        """A window may begin within a block of ours: what lies before it in there never comes."""
        their_size = self._block_size if self._plan is None else self._plan.theirs.block_size
        whole_from = (run.first_block + (not run.is_first_whole)) * their_size
        if whole_from > table.first_own_block * self._block_size:
            table.first_whole_block = -(-whole_from // self._block_size)
