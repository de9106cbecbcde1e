"""The longest hit, against trying every length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_index import PrefixIndex

BLOCK_SIZE = 16
MAX_BLOCKS = 8


def group(group_id: int, sliding_window: int | None) -> KVGroup:
    return KVGroup(
        group_id=group_id,
        layer_ids=(group_id,),
        sliding_window=sliding_window,
        num_kv_heads=1,
        k_head_dim=8,
        v_head_dim=8,
    )


def is_hit(groups: list[KVGroup], held: set[tuple[int, int]], num_blocks: int) -> bool:
    """By the rule itself: all blocks of a group without a window, and those of the others that
    have a position in the last window."""
    for each in groups:
        for block in range(num_blocks):
            last_position = (block + 1) * BLOCK_SIZE - 1
            window = each.sliding_window
            is_seen = window is None or last_position >= num_blocks * BLOCK_SIZE - window
            if is_seen and (each.group_id, block) not in held:
                return False
    return True


@given(
    windows=st.lists(st.none() | st.integers(1, 100), min_size=1, max_size=4),
    length=st.integers(0, MAX_BLOCKS),
    data=st.data(),
)
def test_the_longest_hit_is_found(
    windows: list[int | None], length: int, data: st.DataObject
) -> None:
    groups = [group(group_id, window) for group_id, window in enumerate(windows)]
    places = [(each.group_id, block) for each in groups for block in range(MAX_BLOCKS)]
    # Most are there, or nearly every hit is empty.
    missing = data.draw(st.sets(st.sampled_from(places), max_size=6))
    held = set(places) - missing
    hashes = [bytes([block]) for block in range(length)]
    index = PrefixIndex()
    for block_id, (group_id, block) in enumerate(sorted(held)):
        index.put(block_id, (group_id, bytes([block])))
    match = index.match(groups, hashes, BLOCK_SIZE)
    longest = max(count for count in range(length + 1) if is_hit(groups, held, count))
    assert match.num_blocks == longest
