"""A prompt and a decode that nobody has asked for, in the block that nobody reads.

The first step of a kind loads or compiles its kernels: milliseconds where they are kept on disk,
up to 20 s on a machine that has none of them yet. No request is to wait for that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pdray.engine.attention.base import GroupBatch
from pdray.engine.batch import Batch
from pdray.engine.decode_graphs import scratch_decodes
from pdray.kvcache.layout import KVGroup, KVLayout


def scratch_batches(layout: KVLayout, scratch_block_id: int) -> Iterator[Batch]:
    size = layout.block_size
    prompts = [scratch_prompt(group, size, scratch_block_id) for group in layout.groups]
    decodes = [scratch_decodes(group, size, 1, scratch_block_id) for group in layout.groups]
    for num_tokens, groups in ((size, prompts), (1, decodes)):
        yield Batch(
            input_ids_T=np.zeros(num_tokens, dtype=np.int64),
            positions_T=np.arange(num_tokens),
            sampled_rows=np.array([num_tokens - 1]),
            sampled_chunks=(),
            scored_rows=np.zeros(0, dtype=np.int64),
            groups=tuple(groups),
            partial_block_ids=(),
            copies=(),
        )


def scratch_prompt(group: KVGroup, block_size: int, scratch_block_id: int) -> GroupBatch:
    """One that fills the block."""
    zero = np.zeros(1, dtype=np.int64)
    return GroupBatch(
        block_size=block_size,
        sliding_window=group.sliding_window,
        num_decodes=0,
        query_starts_S=zero,
        query_lens_S=zero + block_size,
        first_blocks_S=zero,
        num_blocks_S=zero + 1,
        block_tables_SB=np.array([[scratch_block_id]]),
        slot_blocks_T=np.full(block_size, scratch_block_id),
        slot_offsets_T=np.arange(block_size),
    )
