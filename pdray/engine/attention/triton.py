"""Attention by our own Triton kernels: blocks are read in place, for decodes and prompts alike.

Suffixes as in base.py.
"""

from __future__ import annotations

import numpy as np
import torch

from pdray.core.errors import ConfigError
from pdray.engine.attention import metadata
from pdray.engine.attention.base import AttentionParams, GroupBatch
from pdray.engine.attention.launch import (
    IS_INTERPRETED,
    DecodeBatch,
    attend_decodes,
    attend_prompts,
    write_rows,
)
from pdray.engine.upload import refill, upload
from pdray.kvcache.storage import LayerCache

PROGRAMS_PER_PROCESSOR = 2
INTERPRETED_PROGRAMS = 16


class TritonBackend:
    """Raises ConfigError without a CUDA device, unless Triton's interpreter is on."""

    def __init__(self, device: str, dtype: str) -> None:
        if torch.device(device).type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self._num_programs = PROGRAMS_PER_PROCESSOR * properties.multi_processor_count
        elif IS_INTERPRETED:
            self._num_programs = INTERPRETED_PROGRAMS
        else:
            raise ConfigError(
                f"attention_backend = 'triton': needs a CUDA device, and this is {device}; "
                "accepted: auto, sdpa"
            )

    def plan(self, batch: GroupBatch, device: torch.device) -> TritonGroupAttention:
        return TritonGroupAttention(batch, device, self._num_programs)

    def plan_static(
        self, batch: GroupBatch, max_blocks: int, device: torch.device
    ) -> TritonDecodes:
        return TritonDecodes(batch, max_blocks, device, self._num_programs)


class TritonGroupAttention:
    """One step of any mix: decodes first, then prompts."""

    def __init__(self, batch: GroupBatch, device: torch.device, num_programs: int) -> None:
        self._batch = batch
        self._device = device
        self._num_programs = num_programs
        self._slots = upload(metadata.slots(batch), device)
        self._decodes: DecodeBatch | None = None
        if batch.num_decodes > 0:
            num_blocks = metadata.decode_blocks(batch.block_tables_SB.shape[1], batch)
            rows = upload(metadata.decode_rows(batch, num_blocks), device)
            self._decodes = DecodeBatch(rows, num_blocks * batch.block_size, num_programs)
        self._prompt_rows: torch.Tensor | None = None
        if batch.num_decodes < len(batch.query_lens_S):
            self._prompt_rows = upload(metadata.prompt_rows(batch), device)
        self._tiles: dict[int, torch.Tensor] = {}

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        # Triton launches on the current device, whatever its arguments lie on.
        with torch.cuda.device_of(query_NTH):
            return self._attend(cache, query_NTH, key_KTH, value_KTH, params)

    def _attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        write_rows(cache, key_KTH, value_KTH, self._slots)
        num_heads, num_tokens, _ = query_NTH.shape
        out_TNH = query_NTH.new_empty(num_tokens, num_heads, value_KTH.shape[-1])
        if self._decodes is not None:
            attend_decodes(cache, query_NTH, params, self._decodes, out_TNH)
        if self._prompt_rows is not None:
            attend_prompts(
                cache,
                query_NTH,
                params,
                self._prompt_rows,
                self._tiles_of,
                self._batch.sliding_window,
                out_TNH,
            )
        return out_TNH

    def _tiles_of(self, queries_per_tile: int) -> torch.Tensor:
        if queries_per_tile not in self._tiles:
            tiles = metadata.prompt_tiles(self._batch, queries_per_tile)
            self._tiles[queries_per_tile] = upload(tiles, self._device)
        return self._tiles[queries_per_tile]


class TritonDecodes:
    """Decodes alone, in a buffer that stays where it is."""

    def __init__(
        self, batch: GroupBatch, max_blocks: int, device: torch.device, num_programs: int
    ) -> None:
        self._num_blocks = metadata.decode_blocks(max_blocks, batch)
        self._buffer = upload(self._numbers(batch), device).clone()
        max_keys = self._num_blocks * batch.block_size
        self._decodes = DecodeBatch(self._buffer[:, metadata.SLOT :], max_keys, num_programs)

    def refill(self, batch: GroupBatch) -> None:
        refill(self._buffer, self._numbers(batch))

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        num_heads, num_rows, _ = query_NTH.shape
        out_SNH = query_NTH.new_empty(num_rows, num_heads, value_KTH.shape[-1])
        with torch.cuda.device_of(query_NTH):
            write_rows(cache, key_KTH, value_KTH, self._buffer)
            attend_decodes(cache, query_NTH, params, self._decodes, out_SNH)
        return out_SNH

    def _numbers(self, batch: GroupBatch) -> metadata.Int32Array:
        rows = metadata.decode_rows(batch, self._num_blocks)
        return np.concatenate([metadata.slots(batch), rows], axis=1)
