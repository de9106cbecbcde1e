"""What an attention backend does: write a step's keys and values into their blocks, attend.

Tensor suffixes: T packed tokens, S sequences, B blocks of a table, N query heads, K KV heads,
H head dim, P block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.kvcache.storage import LayerCache

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupBatch:
    """One step as one KV group sees it: the queries of all sequences back to back, the first
    ``num_decodes`` sequences with one query each.

    Row s of ``block_tables_SB`` starts with logical block ``first_blocks_S[s]``; short rows
    repeat their last block. Keys of this step are in the tables too, at
    ``slot_blocks_T, slot_offsets_T``, once they are written.
    """

    block_size: int
    sliding_window: int | None
    num_decodes: int
    query_starts_S: IntArray
    """Position of each sequence's first query."""
    query_lens_S: IntArray
    first_blocks_S: IntArray
    num_blocks_S: IntArray
    block_tables_SB: IntArray
    slot_blocks_T: IntArray
    slot_offsets_T: IntArray


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What a layer says of its scores: ``softmax(cap(scaling * q.k))``, with a sink per head in
    the denominator."""

    scaling: float
    softcap: float | None
    sinks_N: torch.Tensor | None


class GroupAttention(Protocol):
    """One step's attention for the layers of one KV group."""

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Writes keys and values into the cache, and returns [T, N, value head dim]. Reads only
        blocks of the tables; a masked key changes nothing, whatever is finite in it."""


class StaticDecodes(GroupAttention, Protocol):
    """Attention of steps that are decodes alone, equally many each time. Its tensors stay where
    they are, and what ``attend`` launches depends on their shapes only: so it can be recorded
    once as a graph, and repeated for what was filled in since."""

    def refill(self, batch: GroupBatch) -> None:
        """For the next step, without waiting for the device."""


class AttentionBackend(Protocol):
    def plan(self, batch: GroupBatch, device: torch.device) -> GroupAttention:
        """Does once a step what all layers of the group share."""

    def plan_static(
        self, batch: GroupBatch, max_blocks: int, device: torch.device
    ) -> StaticDecodes:
        """For steps like ``batch``, which is the first of them; no table will be wider than
        ``max_blocks``. Raises NotImplementedError where the backend has no such thing."""
