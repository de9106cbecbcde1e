"""Attention on a CPU: decodes read their blocks in place, prompts go through torch.

Tensor suffixes as in base.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pdray.core.errors import ConfigError
from pdray.engine.attention import cpu_kernels
from pdray.engine.attention.base import AttentionParams, GroupBatch, StaticDecodes
from pdray.engine.attention.prompts import PromptAttention
from pdray.kvcache.storage import TORCH_DTYPES, LayerCache

# numba has no bf16: its bits are widened in the kernel.
_STORED_AS = {torch.float32: torch.float32, torch.bfloat16: torch.int16}


class CpuBackend:
    """Raises ConfigError where its kernels cannot read the cache."""

    def __init__(self, device: str, dtype: str) -> None:
        if device != "cpu" or TORCH_DTYPES[dtype] not in _STORED_AS:
            raise ConfigError(
                f"attention_backend = 'cpu': reads float32 and bfloat16 on a CPU, and this is "
                f"{dtype} on {device}; accepted: auto, sdpa"
            )

    def plan(self, batch: GroupBatch, device: torch.device) -> CpuGroupAttention:
        return CpuGroupAttention(batch, device)

    def plan_static(
        self, batch: GroupBatch, max_blocks: int, device: torch.device
    ) -> StaticDecodes:
        raise NotImplementedError("a CPU has no graphs to record")


class CpuGroupAttention:
    def __init__(self, batch: GroupBatch, device: torch.device) -> None:
        count = batch.num_decodes
        self._block_size = batch.block_size
        self._slot_blocks = batch.slot_blocks_T
        self._slot_offsets = batch.slot_offsets_T
        self._tables = np.ascontiguousarray(batch.block_tables_SB[:count])
        self._contexts = _contexts(batch)
        self._prompts = PromptAttention(batch, device)
        self._kernel = (
            cpu_kernels.attend_decodes_alone
            if torch.get_num_threads() == 1
            else cpu_kernels.attend_decodes_in_parallel
        )

    def attend(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        self._write(cache.k_BKPH, key_KTH)
        self._write(cache.v_BKPH, value_KTH)
        num_heads, num_tokens, _ = query_NTH.shape
        out_TNH = query_NTH.new_empty(num_tokens, num_heads, value_KTH.shape[-1])
        self._attend_decodes(cache, query_NTH, params, out_TNH)
        self._prompts.attend(cache, query_NTH, key_KTH, value_KTH, params, out_TNH)
        return out_TNH

    def _write(self, cache_BKPH: torch.Tensor, rows_KTH: torch.Tensor) -> None:
        rows, strides = _flat(rows_KTH)
        block_stride, head_stride = cache_BKPH.stride()[:2]
        cpu_kernels.write_rows(
            _arena(cache_BKPH),
            self._slot_blocks,
            self._slot_offsets,
            block_stride,
            head_stride,
            cache_BKPH.storage_offset(),
            rows,
            strides[:2],
            (rows_KTH.shape[0], rows_KTH.shape[2]),
        )

    def _attend_decodes(
        self,
        cache: LayerCache,
        query_NTH: torch.Tensor,
        params: AttentionParams,
        out_TNH: torch.Tensor,
    ) -> None:
        num_decodes = len(self._tables)
        if num_decodes == 0:
            return
        queries, (head_stride, token_stride, _) = _flat(query_NTH[:, :num_decodes].float())
        num_heads, value_dim = out_TNH.shape[1:]
        out = torch.empty(num_decodes, num_heads * value_dim)
        block_stride, kv_head_stride = cache.k_BKPH.stride()[:2]
        self._kernel(
            _arena(cache.k_BKPH),
            queries,
            (token_stride, head_stride),
            self._tables,
            self._contexts,
            (self._block_size, query_NTH.shape[-1], value_dim),
            (
                cache.k_BKPH.storage_offset(),
                cache.v_BKPH.storage_offset(),
                block_stride,
                kv_head_stride,
                cache.k_BKPH.shape[1],
            ),
            np.float32(params.scaling),
            np.float32(params.softcap or 0.0),
            _sinks(params, num_heads),
            out.numpy(),
        )
        out_TNH[:num_decodes] = out.view(num_decodes, num_heads, value_dim)


def _contexts(batch: GroupBatch) -> NDArray[np.int64]:
    """[S, 3]: positions of the table's first slot, of the first visible key, past the last."""
    queries = batch.query_starts_S[: batch.num_decodes]
    first_slots = batch.first_blocks_S[: batch.num_decodes] * batch.block_size
    starts = first_slots
    if batch.sliding_window is not None:
        starts = np.maximum(first_slots, queries - batch.sliding_window + 1)
    return np.stack([first_slots, starts, queries + 1], axis=1)


def _flat(tensor: torch.Tensor) -> tuple[NDArray[np.generic], tuple[int, ...]]:
    """The memory that a tensor spans, and its strides; the last dimension is contiguous."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    strides = tensor.stride()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    flat = tensor.as_strided((span,), (1,)).view(_STORED_AS[tensor.dtype])
    return flat.numpy(), strides


def _arena(cache_BKPH: torch.Tensor) -> NDArray[np.generic]:
    size = cache_BKPH.untyped_storage().nbytes() // cache_BKPH.element_size()
    flat = cache_BKPH.as_strided((size,), (1,), 0).view(_STORED_AS[cache_BKPH.dtype])
    return flat.numpy()


def _sinks(params: AttentionParams, num_heads: int) -> NDArray[np.float32]:
    if params.sinks_N is None:
        return np.full(num_heads, -np.inf, dtype=np.float32)
    sinks: NDArray[np.float32] = params.sinks_N.float().numpy()
    return sinks
