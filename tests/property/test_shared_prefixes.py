"""The longest hit of whole steps, against trying every length; and who holds it."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from pdray.engine.holds import BlockHold, Holds
from pdray.engine.shared_prefixes import SharedPrefixes
from pdray.kvcache.block_pool import BlockPool
from tests.property.test_prefix_index import is_hit
from tests.written_kv import groups_of

BLOCK_SIZE = 16
MAX_BLOCKS = 8


@given(
    windows=st.lists(st.none() | st.integers(1, 100), min_size=1, max_size=4),
    length=st.integers(0, MAX_BLOCKS),
    step_blocks=st.integers(1, 4),
    data=st.data(),
)
def test_the_longest_hit_in_whole_steps_is_held(
    windows: list[int | None], length: int, step_blocks: int, data: st.DataObject
) -> None:
    groups = groups_of(windows)
    places = [(group.group_id, block) for group in groups for block in range(MAX_BLOCKS)]
    missing = data.draw(st.sets(st.sampled_from(places), max_size=6))
    here = set(places) - missing
    pool = BlockPool(len(places))
    ids = dict(zip(sorted(here), pool.allocate(len(here)) or [], strict=True))
    for (group_id, block), block_id in ids.items():
        pool.name(block_id, (group_id, bytes([block])))
    pool.release(ids.values())
    holds = Holds(pool, threading.Condition())
    shared = SharedPrefixes(
        groups=groups, block_size=BLOCK_SIZE, pool=pool, holds=holds, lock=threading.Condition()
    )
    hashes = [bytes([block]) for block in range(length)]
    hold = BlockHold()
    num_tokens, runs = shared.hold(hashes, hold, step_tokens=step_blocks * BLOCK_SIZE)
    steps = range(0, length + 1, step_blocks)
    num_blocks = max(count for count in steps if is_hit(list(groups), here, count))
    assert num_tokens == num_blocks * BLOCK_SIZE
    assert num_blocks <= shared.count_tokens(hashes) // BLOCK_SIZE
    needed = {
        (group.group_id, block)
        for group in groups
        for block in range(num_blocks)
        if group.sliding_window is None
        or (block + 1) * BLOCK_SIZE > num_tokens - group.sliding_window
    }
    lent = {
        (run.group_id, number): block_id
        for run in runs
        for number, block_id in enumerate(run.block_ids, run.first_block)
    }
    assert lent == {place: ids[place] for place in needed}
    assert pool.num_held_blocks == len(needed)
    holds.release(hold)
    assert pool.num_available_blocks == pool.num_blocks
