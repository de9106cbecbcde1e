"""What the Triton kernels are told of a step, as int32 arrays; triton_kernels.py says how they
read them.

Suffixes as in base.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pdray.engine.attention.base import GroupBatch

Int32Array = NDArray[np.int32]

SLOT = 2
"""Numbers of a token's slot: its block, and its offset there."""
HEADER = 3
"""Numbers before a row's table."""


def decode_blocks(table_blocks: int, batch: GroupBatch) -> int:
    """The most blocks that a decode reads of such a table."""
    if batch.sliding_window is None:
        return table_blocks
    # A window may begin with the last slot of a block.
    return min(table_blocks, (batch.sliding_window + 2 * batch.block_size - 2) // batch.block_size)


def slots(batch: GroupBatch) -> Int32Array:
    """[T, 2]: block and offset of each token."""
    return np.stack([batch.slot_blocks_T, batch.slot_offsets_T], axis=1).astype(np.int32)


def decode_rows(batch: GroupBatch, num_blocks: int) -> Int32Array:
    """[decodes, HEADER + num_blocks]. A table begins with the first block that its query sees."""
    count = batch.num_decodes
    queries = batch.query_starts_S[:count]
    firsts = np.zeros_like(queries)
    if batch.sliding_window is not None:
        firsts = np.maximum(queries - batch.sliding_window + 1, 0)
    first_blocks = firsts // batch.block_size
    starts = first_blocks * batch.block_size
    columns = (first_blocks - batch.first_blocks_S[:count])[:, None] + np.arange(num_blocks)
    # Past its own blocks a row repeats its last: nothing is read there.
    columns = np.minimum(columns, batch.num_blocks_S[:count, None] - 1)
    rows = np.empty((count, HEADER + num_blocks), dtype=np.int32)
    rows[:, 0] = firsts - starts
    rows[:, 1] = queries + 1 - starts
    rows[:, 2] = np.minimum((queries + 1 - firsts).sum(), np.iinfo(np.int32).max)
    rows[:, HEADER:] = np.take_along_axis(batch.block_tables_SB[:count], columns, axis=1)
    return rows


def prompt_rows(batch: GroupBatch) -> Int32Array:
    """[prompts, HEADER + B]"""
    ends = np.cumsum(batch.query_lens_S)
    prompts = slice(batch.num_decodes, None)
    tables = batch.block_tables_SB[prompts]
    rows = np.empty((len(tables), HEADER + tables.shape[1]), dtype=np.int32)
    rows[:, 0] = (ends - batch.query_lens_S)[prompts]
    rows[:, 1] = batch.query_lens_S[prompts]
    rows[:, 2] = (batch.query_starts_S - batch.first_blocks_S * batch.block_size)[prompts]
    rows[:, HEADER:] = tables
    return rows


def prompt_tiles(batch: GroupBatch, queries_per_tile: int) -> Int32Array:
    """[tiles, 2]: a tile's row in ``prompt_rows``, and its first query. Those with the longest
    contexts come first, so that none of them is left running alone at the end."""
    lens = batch.query_lens_S[batch.num_decodes :]
    counts = -(-lens // queries_per_tile)
    row_of_tile = np.repeat(np.arange(len(lens)), counts)
    index = np.arange(len(row_of_tile)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = index * queries_per_tile
    contexts = batch.query_starts_S[batch.num_decodes :][row_of_tile] + firsts
    order = np.argsort(-contexts, kind="stable")
    return np.stack([row_of_tile, firsts], axis=1)[order].astype(np.int32)
