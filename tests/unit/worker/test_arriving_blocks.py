"""Blocks that arrive only in part are never found by another prompt."""

from __future__ import annotations

import pytest

from pdray.core.handoff import BlockRun, Watermark
from pdray.engine.sequence import BlockTable
from pdray.transfer.reshard_plan import NOTHING, plan_for
from pdray.worker.arriving_blocks import ArrivingBlocks
from tests.resharding import layout_of


def last(run: BlockRun) -> Watermark:
    return Watermark(lease_id="l", ready_tokens=200, runs=(run,), first_token_id=1)


@pytest.mark.parametrize(("first_block", "first_whole"), [(8, 0), (9, 3), (11, 3)])
def test_a_window_that_begins_within_a_block_leaves_it_without_a_name(
    first_block: int, first_whole: int
) -> None:
    tables = [BlockTable(), BlockTable(2, [40, 41])]
    arriving = ArrivingBlocks(tables, 64, plan_for(layout_of(), layout_of(block_size=64)))
    run = BlockRun(group_id=1, first_block=first_block, block_ids=tuple(range(13 - first_block)))
    remote, local = arriving.take_new(last(run))
    assert len(remote) == len(local) == 8
    assert remote.count(NOTHING) == 8 - (13 - first_block)
    assert tables[1].first_whole_block == first_whole


def test_what_the_owner_has_only_in_part_is_no_more_here() -> None:
    tables = [BlockTable(), BlockTable(8, [40, 41, 42])]
    arriving = ArrivingBlocks(tables, 16, None)
    run = BlockRun(group_id=1, first_block=8, block_ids=(1, 2, 3), is_first_whole=False)
    assert arriving.take_new(last(run)) == ([1, 2, 3], [40, 41, 42])
    assert tables[1].first_whole_block == 9
    assert arriving.take_new(last(run)) == ([], [])
