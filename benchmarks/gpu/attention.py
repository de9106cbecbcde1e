"""Paged attention alone: right against the reference backend, and how fast.

The figures are of a layer shape of 32 query and 8 KV heads of 128, Llama 8B's. A caller brings
``seconds``, which times an action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pdray.engine.attention import ATTENTION
from pdray.engine.attention.base import AttentionParams, GroupAttention, GroupBatch
from pdray.engine.cuda_graphs import recorder_for
from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.storage import TORCH_DTYPES, KVStorage

Seconds = Callable[[Callable[[], object]], float]
NUM_HEADS = 32
LLAMA = LayerKV(sliding_window=None, num_kv_heads=8, k_head_dim=128, v_head_dim=128)
BLOCK_SIZE = 16
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Of what is near 1 at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    kind: LayerKV
    num_heads: int
    softcap: float | None = None
    has_sinks: bool = False


def _kind(window: int | None, num_kv_heads: int, k_head_dim: int, v_head_dim: int) -> LayerKV:
    return LayerKV(
        sliding_window=window,
        num_kv_heads=num_kv_heads,
        k_head_dim=k_head_dim,
        v_head_dim=v_head_dim,
    )


SHAPES = {
    "llama": Shape(kind=LLAMA, num_heads=NUM_HEADS),
    "window of 300, head dim 256": Shape(kind=_kind(300, 1, 256, 256), num_heads=4),
    "softcap": Shape(kind=_kind(None, 4, 256, 256), num_heads=8, softcap=50.0),
    "sinks, window of 128": Shape(kind=_kind(128, 8, 64, 64), num_heads=64, has_sinks=True),
    "unequal dims": Shape(kind=_kind(None, 16, 192, 128), num_heads=16),
    "7 heads to one of 80": Shape(kind=_kind(None, 2, 80, 80), num_heads=14),
}


class Layers:
    """Some layers' KV, full of random numbers, and a step over them."""

    def __init__(
        self, shape: Shape, dtype: str, device: torch.device, batch: GroupBatch, num_layers: int
    ) -> None:
        layout = KVLayout.of_layers(
            [shape.kind] * num_layers, model_digest="", block_size=BLOCK_SIZE, dtype=dtype
        )
        storage = KVStorage(layout, int(batch.block_tables_SB.max()) + 1, str(device))
        self.storage = storage
        self.batch = batch
        generator = torch.Generator().manual_seed(0)
        for layer in storage.layers:
            for cache in (layer.k_BKPH, layer.v_BKPH):
                cache.copy_(torch.randn(cache.shape[1:], generator=generator))

        def heads(count: int, head_dim: int) -> torch.Tensor:
            rows = torch.randn(len(batch.slot_blocks_T), count, head_dim, generator=generator)
            return rows.to(device, TORCH_DTYPES[dtype]).transpose(0, 1)

        kind = shape.kind
        self.query_NTH = heads(shape.num_heads, kind.k_head_dim)
        self.key_KTH = heads(kind.num_kv_heads, kind.k_head_dim)
        self.value_KTH = heads(kind.num_kv_heads, kind.v_head_dim)
        sinks = torch.randn(shape.num_heads, generator=generator).to(device)
        self.params = AttentionParams(
            kind.k_head_dim**-0.5, shape.softcap, sinks if shape.has_sinks else None
        )

    def attend(self, plan: GroupAttention, layer: int) -> torch.Tensor:
        cache = self.storage.layers[layer]
        return plan.attend(cache, self.query_NTH, self.key_KTH, self.value_KTH, self.params)


def batch_of(sequences: list[tuple[int, int]], window: int | None) -> GroupBatch:
    """(computed, new) tokens of each; those with one new token come first, and decode."""
    computed = np.array([each[0] for each in sequences])
    news = np.array([each[1] for each in sequences])
    counts = -(-(computed + news) // BLOCK_SIZE)
    ids = np.random.default_rng(0).permutation(int(counts.sum()))
    columns = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    tables = ids[(np.cumsum(counts) - counts)[:, None] + columns]
    positions = np.concatenate([np.arange(start, start + new) for start, new in sequences])
    return GroupBatch(
        block_size=BLOCK_SIZE,
        sliding_window=window,
        num_decodes=int((news == 1).sum()),
        query_starts_S=computed,
        query_lens_S=news,
        first_blocks_S=np.zeros_like(computed),
        num_blocks_S=counts,
        block_tables_SB=tables,
        slot_blocks_T=tables[np.repeat(np.arange(len(news)), news), positions // BLOCK_SIZE],
        slot_offsets_T=positions % BLOCK_SIZE,
    )


@torch.inference_mode()
def worst_error(name: str, dtype: str, device: torch.device, backend: str) -> float:
    """The largest difference from ``sdpa`` in fp32 on a CPU, of a step of decodes and prompts;
    to be held against TOLERANCES."""
    shape = SHAPES[name]
    sequences = [(1, 1), (15, 1), (16, 1), (900, 1), (3000, 1), (0, 70), (37, 200), (1000, 129)]
    batch = batch_of(sequences, shape.kind.sliding_window)
    layers = Layers(shape, dtype, device, batch, 2)
    plan = ATTENTION.get(backend)(str(device), dtype).plan(batch, device)
    out = layers.attend(plan, 1).float().cpu()
    cpu = torch.device("cpu")
    reference = Layers(shape, "float32", cpu, batch, 2)
    for name_of_rows in ("query_NTH", "key_KTH", "value_KTH"):
        rounded = getattr(layers, name_of_rows).float().cpu()
        setattr(reference, name_of_rows, rounded)
    for rounded_layer, layer in zip(layers.storage.layers, reference.storage.layers, strict=True):
        layer.k_BKPH.copy_(rounded_layer.k_BKPH)
        layer.v_BKPH.copy_(rounded_layer.v_BKPH)
    expected = reference.attend(ATTENTION.get("sdpa")("cpu", "float32").plan(batch, cpu), 1)
    return float((out - expected).abs().max())


@torch.inference_mode()
def decode_bytes_per_s(
    device: torch.device,
    seconds: Seconds,
    *,
    num_seqs: int,
    context: int,
    num_layers: int = 8,
    backend: str = "triton",
) -> float:
    """Of keys and values read in bf16; recorded as a CUDA graph where there is a GPU. The layers
    together should be larger than the device's cache."""
    batch = batch_of([(context - 1, 1)] * num_seqs, None)
    layers = Layers(Shape(kind=LLAMA, num_heads=NUM_HEADS), "bfloat16", device, batch, num_layers)
    max_blocks = batch.block_tables_SB.shape[1]
    plan = ATTENTION.get(backend)(str(device), "bfloat16").plan_static(batch, max_blocks, device)

    def step() -> None:
        for layer in range(num_layers):
            layers.attend(plan, layer)

    recorder = recorder_for(str(device))
    duration_s = seconds(step if recorder is None else recorder.record(step))
    return num_layers * num_seqs * context * LLAMA.elements_per_token * 2 / duration_s


@torch.inference_mode()
def prefill_flops_per_s(
    device: torch.device,
    seconds: Seconds,
    *,
    num_prompts: int,
    num_tokens: int,
    computed: int = 0,
    backend: str = "triton",
) -> float:
    """Of causal attention in bf16, only what is seen counted."""
    batch = batch_of([(computed, num_tokens)] * num_prompts, None)
    layers = Layers(Shape(kind=LLAMA, num_heads=NUM_HEADS), "bfloat16", device, batch, 1)
    plan = ATTENTION.get(backend)(str(device), "bfloat16").plan(batch, device)
    duration_s = seconds(lambda: layers.attend(plan, 0))
    num_scores = num_tokens * computed + num_tokens * (num_tokens + 1) // 2
    flops_per_score = 2 * NUM_HEADS * (LLAMA.k_head_dim + LLAMA.v_head_dim)
    return num_prompts * num_scores * flops_per_score / duration_s
