"""Attention on a CPU: decodes read their blocks in place, prompts go in tiles.

Tensor suffixes as in base.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.core.errors import ConfigError
from pdray.engine.attention import cpu_kernels
from pdray.engine.attention.base import AttentionParams, GroupBatch, StaticDecodes
from pdray.engine.attention.cpu_prompts import TiledPrompts
from pdray.engine.openmp import compile_body, float_bits, launch
from pdray.kvcache.storage import TORCH_DTYPES, LayerCache

_DTYPES = (torch.float32, torch.bfloat16)


class CpuBackend:
    """Raises ConfigError where its kernels cannot read the cache."""

    def __init__(self, device: str, dtype: str) -> None:
        if device != "cpu" or TORCH_DTYPES[dtype] not in _DTYPES:
            raise ConfigError(
                f"attention_backend = 'cpu': reads float32 and bfloat16 on a CPU, and this is "
                f"{dtype} on {device}; accepted: auto, sdpa"
            )

    def plan(self, batch: GroupBatch, device: torch.device) -> CpuGroupAttention:
        return CpuGroupAttention(batch)

    def plan_static(
        self, batch: GroupBatch, max_blocks: int, device: torch.device
    ) -> StaticDecodes:
        raise NotImplementedError("a CPU has no graphs to record")


class CpuGroupAttention:
    def __init__(self, batch: GroupBatch) -> None:
        self._batch = batch
        self._tables = np.ascontiguousarray(batch.block_tables_SB[: batch.num_decodes])
        self._contexts = _contexts(batch)
        self._num_threads = torch.get_num_threads()
        self._write_rows = compile_body(cpu_kernels.write_rows)
        self._attend_decodes = compile_body(cpu_kernels.attend_decodes)
        self._prompts: TiledPrompts | None = None

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        num_heads, num_tokens, _ = query_NTH.shape
        self._write(cache, key_KTH, value_KTH)
        out_TNH = query_NTH.new_empty(num_tokens, num_heads, value_KTH.shape[-1])
        if self._batch.num_decodes:
            self._attend(cache, query_NTH, params, out_TNH)
        if num_tokens > self._batch.num_decodes:
            if self._prompts is None:
                self._prompts = TiledPrompts(self._batch)
            self._prompts.attend(cache, query_NTH, key_KTH, value_KTH, params, out_TNH)
        return out_TNH

    def _write(self, cache: LayerCache, key_KTH: torch.Tensor, value_KTH: torch.Tensor) -> None:
        block_stride, head_stride = cache.k_BKPH.stride()[:2]
        arguments = [
            _is_bf16(key_KTH),
            key_KTH.shape[1],
            self._batch.slot_blocks_T.ctypes.data,
            self._batch.slot_offsets_T.ctypes.data,
            block_stride,
            head_stride,
            key_KTH.shape[0],
        ]
        for cached, rows in ((cache.k_BKPH, key_KTH), (cache.v_BKPH, value_KTH)):
            head_stride, token_stride, _ = rows.stride()
            arguments += (
                cached.data_ptr(),
                rows.data_ptr(),
                token_stride,
                head_stride,
                rows.shape[2],
            )
        launch(self._write_rows, self._num_threads, tuple(arguments))

    def _attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        params: AttentionParams,
        out_TNH: torch.Tensor,
    ) -> None:
        num_seqs, width = self._tables.shape
        head_stride, token_stride, _ = query_NTH.stride()
        block_stride, kv_head_stride = cache.k_BKPH.stride()[:2]
        num_kv_heads = cache.k_BKPH.shape[1]
        group = query_NTH.shape[0] // num_kv_heads
        sinks = None if params.sinks_N is None else params.sinks_N.float()
        launch(
            self._attend_decodes,
            self._num_threads,
            (
                _is_bf16(query_NTH),
                num_seqs,
                self._tables.ctypes.data,
                width,
                self._contexts.ctypes.data,
                query_NTH.data_ptr(),
                token_stride,
                head_stride,
                num_kv_heads,
                group,
                self._batch.block_size,
                query_NTH.shape[2],
                out_TNH.shape[2],
                cache.k_BKPH.data_ptr(),
                cache.v_BKPH.data_ptr(),
                block_stride,
                kv_head_stride,
                float_bits(params.scaling),
                float_bits(params.softcap or 0.0),
                0 if sinks is None else sinks.data_ptr(),
                out_TNH.data_ptr(),
                self._heads_per_item(num_seqs * num_kv_heads, group),
            ),
        )

    def _heads_per_item(self, num_items: int, group: int) -> int:
        """All of a KV head's, so that its keys are read once; fewer where threads had no work."""
        return group if num_items >= self._num_threads else -(-group // self._num_threads)


def _is_bf16(tensor: torch.Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)


def _contexts(batch: GroupBatch) -> NDArray[np.int64]:
    """[S, 3]: positions of the table's first slot, of the first visible key, past the last."""
    queries = batch.query_starts_S[: batch.num_decodes]
    first_slots = batch.first_blocks_S[: batch.num_decodes] * batch.block_size
    starts = first_slots
    if batch.sliding_window is not None:
        starts = np.maximum(first_slots, queries - batch.sliding_window + 1)
    return np.stack([first_slots, starts, queries + 1], axis=1)
