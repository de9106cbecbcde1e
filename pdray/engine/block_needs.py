"""How many KV blocks a stretch of tokens takes in each KV group: pure arithmetic.

A query at position q of a group with a window W sees the keys at positions > q - W.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pdray.engine.sequence import BlockTable
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.prefix_index import first_block_of_hit


def num_blocks_of(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def first_needed_block(group: KVGroup, num_computed_tokens: int, block_size: int) -> int:
    """Of the next query, at position ``num_computed_tokens``, and all after it."""
    if group.sliding_window is None:
        return 0
    return max(0, num_computed_tokens - group.sliding_window + 1) // block_size


def first_kept_block(group: KVGroup, num_computed_tokens: int, block_size: int) -> int:
    """As ``first_needed_block``, but of all queries from the last full block's end on: the
    prefix cache finds a prefix that ends there only with the whole window before it."""
    return first_block_of_hit(group, num_computed_tokens // block_size * block_size, block_size)


def peak_blocks(
    group: KVGroup,
    *,
    first_block: int,
    computed: int,
    target: int,
    max_chunk: int,
    block_size: int,
) -> int:
    """Most blocks from ``first_block`` on that the group holds at a time on the way from
    ``computed`` to ``target`` tokens, in any chunks up to ``max_chunk``; 0 where there is no way
    to go."""
    if target <= computed:
        return 0
    first_block = max(first_block, first_kept_block(group, computed, block_size))
    needed = num_blocks_of(target, block_size) - first_block
    if group.sliding_window is None:
        return needed
    # The window, and what one step writes, at the worst alignment to blocks.
    chunk = min(max_chunk, target - computed)
    most = num_blocks_of(group.sliding_window, block_size) + num_blocks_of(chunk - 1, block_size)
    return min(needed, most + 1)


def missing_blocks(
    groups: Iterable[KVGroup],
    tables: Iterable[BlockTable],
    *,
    computed: int,
    target: int,
    max_chunk: int,
    block_size: int,
) -> int:
    """Blocks that the tables lack on that way, all groups together. Shared ones that fall out of
    a window are of no use for it: others may hold them."""
    missing = 0
    for group, table in zip(groups, tables, strict=True):
        peak = peak_blocks(
            group,
            first_block=table.first_own_block,
            computed=computed,
            target=target,
            max_chunk=max_chunk,
            block_size=block_size,
        )
        missing += max(0, peak - table.num_own_blocks)
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
