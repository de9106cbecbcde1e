"""How many KV blocks a stretch of tokens takes in each KV group: pure arithmetic.

A query at position q of a group with a window W sees the keys at positions > q - W.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdray.engine.sequence import BlockTable
from pdray.kvcache.layout import KVGroup


def num_blocks_of(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def first_needed_block(group: KVGroup, num_computed_tokens: int, block_size: int) -> int:
    """Of the next query, at position ``num_computed_tokens``, and all after it."""
    if group.sliding_window is None:
        return 0
    return max(0, num_computed_tokens - group.sliding_window + 1) // block_size


def peak_blocks(
    group: KVGroup, *, computed: int, target: int, max_chunk: int, block_size: int
) -> int:
    """Most blocks that the group holds at a time on the way from ``computed`` to ``target``
    tokens, in any chunks up to ``max_chunk``; 0 where there is no way to go."""
    if target <= computed:
        return 0
    needed = num_blocks_of(target, block_size) - first_needed_block(group, computed, block_size)
    if group.sliding_window is None:
        return needed
    # What one step reads and writes, at the worst alignment to blocks.
    run = group.sliding_window - 1 + min(max_chunk, target - computed)
    return min(needed, num_blocks_of(run - 1, block_size) + 1)


def missing_blocks(
    groups: Iterable[KVGroup],
    tables: Sequence[BlockTable],
    *,
    computed: int,
    target: int,
    max_chunk: int,
    block_size: int,
) -> int:
    """Blocks that the tables lack on that way, all groups together."""
    missing = 0
    for group, table in zip(groups, tables, strict=True):
        peak = peak_blocks(
            group, computed=computed, target=target, max_chunk=max_chunk, block_size=block_size
        )
        missing += max(0, peak - len(table.block_ids))
    return missing


def max_sequence_tokens(
    groups: Sequence[KVGroup], *, num_blocks: int, max_chunk: int, block_size: int, limit: int
) -> int:
    """The longest sequence, up to ``limit``, that ``num_blocks`` hold at every moment."""
    tables = [BlockTable() for _ in groups]

    def fits(num_tokens: int) -> bool:
        return num_blocks >= missing_blocks(
            groups,
            tables,
            computed=0,
            target=num_tokens,
            max_chunk=max_chunk,
            block_size=block_size,
        )

    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
