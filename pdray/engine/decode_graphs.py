"""Steps of decodes alone, recorded for some batch sizes: such a step fills the buffers of the
next larger size, and one launch runs it.

S sequences with one token each, V vocabulary. Rows past the batch are padding: they write to
the arena's scratch block, and nobody reads what comes of them.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pdray.engine.attention.base import (
    AttentionBackend,
    GroupAttention,
    GroupBatch,
    IntArray,
    StaticDecodes,
)
from pdray.engine.batch import Batch
from pdray.engine.block_needs import peak_blocks
from pdray.engine.cuda_graphs import Action, Recorder
from pdray.engine.upload import refill
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.storage import KVStorage

logger = logging.getLogger(__name__)

Forward = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Sequence[GroupAttention]], torch.Tensor
]
"""Token ids, positions, rows whose logits are wanted, and each KV group's attention: logits."""


def batch_sizes(max_batch_size: int) -> list[int]:
    """That are recorded, ascending: so dense that little of a step is padding."""
    sizes = [1, 2, 4, *range(8, min(max_batch_size, 256), 8), *range(256, max_batch_size, 32)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    input_ids_S: torch.Tensor
    positions_S: torch.Tensor
    groups: list[StaticDecodes]
    logits_SV: torch.Tensor
    replay: Action


class DecodeGraphs:
    """Recorded when it is made, largest first, so that the others fit into the memory that it
    took. What cannot be recorded, the runner runs eagerly."""

    def __init__(
        self,
        forward: Forward,
        recorder: Recorder,
        backend: AttentionBackend,
        storage: KVStorage,
        device: torch.device,
        *,
        max_batch_size: int,
        max_sequence_tokens: int,
        model_name: str,
    ) -> None:
        self._forward = forward
        self._recorder = recorder
        self._backend = backend
        self._layout = storage.layout
        self._scratch_block_id = storage.scratch_block_id
        self._device = device
        self._max_tokens = max_sequence_tokens
        self._steps: dict[int, RecordedStep] = {}
        try:
            for size in reversed(batch_sizes(max_batch_size)):
                self._steps[size] = self._record(size)
        except RuntimeError as error:
            self._steps.clear()
            logger.warning(
                "%s: decode steps are not recorded as CUDA graphs, and run eagerly: %s",
                model_name,
                _reason(error),
            )
        self._sizes = sorted(self._steps)

    def run(self, batch: Batch) -> torch.Tensor | None:
        """Logits [S, V], which the next run overwrites; None for a step that was not recorded."""
        num_seqs = batch.groups[0].num_decodes
        if num_seqs < len(batch.input_ids_T) or not self._sizes or num_seqs > self._sizes[-1]:
            return None
        size = self._sizes[bisect.bisect_left(self._sizes, num_seqs)]
        step = self._steps[size]
        num_padding = size - num_seqs
        refill(step.input_ids_S[:num_seqs], batch.input_ids_T)
        refill(step.positions_S, _pad(batch.positions_T, num_padding, 0))
        for static, group in zip(step.groups, batch.groups, strict=True):
            static.refill(pad_decodes(group, num_padding, self._scratch_block_id))
        step.replay()
        return step.logits_SV[:num_seqs]

    def _record(self, size: int) -> RecordedStep:
        input_ids_S = torch.zeros(size, dtype=torch.long, device=self._device)
        positions_S = torch.zeros_like(input_ids_S)
        rows_S = torch.arange(size, device=self._device)
        groups = [self._static_decodes(group, size) for group in self._layout.groups]
        logits_SV = self._logits_buffer(
            lambda: self._forward(input_ids_S, positions_S, rows_S, groups), size
        )

        def run() -> None:
            logits_SV.copy_(self._forward(input_ids_S, positions_S, rows_S, groups))

        return RecordedStep(input_ids_S, positions_S, groups, logits_SV, self._recorder.record(run))

    def _static_decodes(self, group: KVGroup, size: int) -> StaticDecodes:
        block_size = self._layout.block_size
        max_blocks = peak_blocks(
            group,
            first_block=0,
            computed=0,
            target=self._max_tokens,
            # A step ahead of the one that runs: a table has both, and the window moves on later.
            max_chunk=2,
            block_size=block_size,
        )
        batch = scratch_decodes(group, block_size, size, self._scratch_block_id)
        return self._backend.plan_static(batch, max_blocks, self._device)

    def _logits_buffer(self, forward: Callable[[], torch.Tensor], size: int) -> torch.Tensor:
        """The graphs share one, as no two results are wanted at a time."""
        if not self._steps:
            return torch.empty_like(forward())
        return self._steps[max(self._steps)].logits_SV[:size]


def scratch_decodes(
    group: KVGroup, block_size: int, num_seqs: int, scratch_block_id: int
) -> GroupBatch:
    """Sequences of one token, whose keys all go to the scratch block's first slot."""
    zeros = np.zeros(num_seqs, dtype=np.int64)
    scratch = np.full(num_seqs, scratch_block_id)
    return GroupBatch(
        block_size=block_size,
        sliding_window=group.sliding_window,
        num_decodes=num_seqs,
        query_starts_S=zeros,
        query_lens_S=zeros + 1,
        first_blocks_S=zeros,
        num_blocks_S=zeros + 1,
        block_tables_SB=scratch[:, None],
        slot_blocks_T=scratch,
        slot_offsets_T=zeros,
    )


def pad_decodes(group: GroupBatch, num_padding: int, scratch_block_id: int) -> GroupBatch:
    """With as many such sequences after its own."""
    return replace(
        group,
        num_decodes=group.num_decodes + num_padding,
        query_starts_S=_pad(group.query_starts_S, num_padding, 0),
        query_lens_S=_pad(group.query_lens_S, num_padding, 1),
        first_blocks_S=_pad(group.first_blocks_S, num_padding, 0),
        num_blocks_S=_pad(group.num_blocks_S, num_padding, 1),
        block_tables_SB=_pad(group.block_tables_SB, num_padding, scratch_block_id),
        slot_blocks_T=_pad(group.slot_blocks_T, num_padding, scratch_block_id),
        slot_offsets_T=_pad(group.slot_offsets_T, num_padding, 0),
    )


def _pad(array: IntArray, num_rows: int, value: int) -> IntArray:
    rows = np.full((num_rows, *array.shape[1:]), value, dtype=array.dtype)
    return np.concatenate([array, rows])


def _reason(error: BaseException) -> str:
    """What went wrong first: ending a failed recording fails too."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
