"""A step's plan as arrays: the tokens packed in one row, and where each KV group finds keys.

Suffixes as in attention/base.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pdray.engine.attention.base import GroupBatch, IntArray
from pdray.engine.scheduler import ScheduledChunk, StepPlan
from pdray.engine.sequence import BlockTable
from pdray.kvcache.layout import KVGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    input_ids_T: IntArray | torch.Tensor
    """A tensor where they were sampled on the device, and the host does not know them yet."""
    positions_T: IntArray
    sampled_rows: IntArray
    """Rows of T whose logits are wanted, in the order of ``sampled_chunks``."""
    sampled_chunks: tuple[ScheduledChunk, ...]
    scored_rows: IntArray
    """Rows of T whose logits say how likely the prompt's next token was."""
    groups: tuple[GroupBatch, ...]
    partial_block_ids: tuple[int, ...]
    """Blocks that the step begins and does not fill: what lies in their rest is not its own."""
    copies: tuple[tuple[int, int], ...]
    """Blocks whose bytes must be in others before anything is written: from, to."""


def build_batch(
    plan: StepPlan,
    groups: tuple[KVGroup, ...],
    block_size: int,
    input_ids_T: torch.Tensor | None = None,
) -> Batch:
    """Without ``input_ids_T``, the sequences know their tokens."""
    chunks = plan.chunks
    starts = np.array([chunk.start for chunk in chunks])
    lens = np.array([chunk.num_tokens for chunk in chunks])
    ends = np.cumsum(lens)
    seq_of_T = np.repeat(np.arange(len(chunks)), lens)
    positions_T = np.arange(ends[-1]) - np.repeat(ends - lens, lens) + np.repeat(starts, lens)
    is_last = np.array([chunk.is_last for chunk in chunks])
    return Batch(
        input_ids_T=_known_tokens(chunks) if input_ids_T is None else input_ids_T,
        positions_T=positions_T,
        sampled_rows=ends[is_last] - 1,
        sampled_chunks=tuple(chunk for chunk in chunks if chunk.is_last),
        scored_rows=_scored_rows(chunks, ends),
        groups=tuple(
            _build_group(plan, group, block_size, starts, lens, seq_of_T, positions_T)
            for group in groups
        ),
        partial_block_ids=tuple(_partial_block_ids(chunks, block_size)),
        copies=tuple(copy for chunk in chunks for copy in chunk.copies),
    )


def _build_group(
    plan: StepPlan,
    group: KVGroup,
    block_size: int,
    starts: IntArray,
    lens: IntArray,
    seq_of_T: IntArray,
    positions_T: IntArray,
) -> GroupBatch:
    tables = [chunk.sequence.block_tables[group.group_id] for chunk in plan.chunks]
    first_blocks = np.array([table.first_block for table in tables])
    block_tables_SB = _pad_tables(tables)
    slot_blocks_T = block_tables_SB[seq_of_T, positions_T // block_size - first_blocks[seq_of_T]]
    return GroupBatch(
        block_size=block_size,
        sliding_window=group.sliding_window,
        num_decodes=plan.num_decodes,
        query_starts_S=starts,
        query_lens_S=lens,
        first_blocks_S=first_blocks,
        num_blocks_S=np.array([len(table.block_ids) for table in tables]),
        block_tables_SB=block_tables_SB,
        slot_blocks_T=slot_blocks_T,
        slot_offsets_T=positions_T % block_size,
    )


def _known_tokens(chunks: tuple[ScheduledChunk, ...]) -> IntArray:
    token_ids = [
        token_id
        for chunk in chunks
        for token_id in chunk.sequence.token_ids(chunk.start, chunk.end)
    ]
    return np.array(token_ids)


def num_scored(chunk: ScheduledChunk) -> int:
    """How many of its tokens, from the first on, have a next one in a prompt that is scored."""
    if not chunk.sequence.scores_prompt:
        return 0
    return min(chunk.end, chunk.sequence.request.num_prompt_tokens - 1) - chunk.start


def _scored_rows(chunks: tuple[ScheduledChunk, ...], ends: IntArray) -> IntArray:
    rows = [
        np.arange(end - chunk.num_tokens, end - chunk.num_tokens + num_scored(chunk))
        for chunk, end in zip(chunks, ends, strict=True)
    ]
    return np.concatenate(rows).astype(np.int64)


def _pad_tables(tables: list[BlockTable]) -> IntArray:
    """A short row repeats its last block, so that no row reads blocks of other sequences."""
    width = max(len(table.block_ids) for table in tables)
    padded = np.empty((len(tables), width), dtype=np.int64)
    for row, table in zip(padded, tables, strict=True):
        row[: len(table.block_ids)] = table.block_ids
        row[len(table.block_ids) :] = table.block_ids[-1]
    return padded


def _partial_block_ids(chunks: tuple[ScheduledChunk, ...], block_size: int) -> list[int]:
    return [
        table.block_ids[-1]
        for chunk in chunks
        if chunk.end % block_size and chunk.end // block_size * block_size >= chunk.start
        for table in chunk.sequence.block_tables
    ]
