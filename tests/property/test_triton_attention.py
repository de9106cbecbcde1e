"""Triton's paged attention equals the reference on any batch, layer shape and block size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdray.engine.attention import ATTENTION
from pdray.engine.attention.base import AttentionBackend, AttentionParams, GroupBatch
from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.storage import KVStorage

pytest.importorskip("triton")

CPU = torch.device("cpu")
Sequences = list[tuple[int, int]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[GroupBatch, int]:
    """And how many blocks there are."""
    decodes = draw(st.lists(st.integers(1, 400), max_size=5))
    least = 0 if decodes else 1
    prompt = st.tuples(st.integers(0, 150), st.integers(1, 70))
    prompts = draw(st.lists(prompt, min_size=least, max_size=3))
    sequences = [(computed, 1) for computed in decodes] + prompts
    window = draw(st.none() | st.integers(1, 200))
    block_size = draw(st.sampled_from([16, 32, 48, 64]))
    computed = np.array([each[0] for each in sequences])
    news = np.array([each[1] for each in sequences])
    firsts = np.zeros_like(computed)
    if window is not None:
        firsts = np.maximum(computed - window + 1, 0) // block_size
    counts = -(-(computed + news) // block_size) - firsts
    ids = np.random.default_rng(draw(st.integers(0, 99))).permutation(counts.sum())
    ends = np.cumsum(counts)
    columns = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    tables = ids[(ends - counts)[:, None] + columns]
    seq_of_T = np.repeat(np.arange(len(news)), news)
    positions = np.concatenate([np.arange(a, a + n) for a, n in sequences])
    batch = GroupBatch(
        block_size=block_size,
        sliding_window=window,
        num_decodes=len(decodes),
        query_starts_S=computed,
        query_lens_S=news,
        first_blocks_S=firsts,
        num_blocks_S=counts,
        block_tables_SB=tables,
        slot_blocks_T=tables[seq_of_T, positions // block_size - firsts[seq_of_T]],
        slot_offsets_T=positions % block_size,
    )
    return batch, int(counts.sum())


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=batches(),
    num_kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 4, 8]),
    k_head_dim=st.sampled_from([16, 24, 64, 80]),
    v_head_dim=st.sampled_from([16, 40, 128]),
    softcap=st.none() | st.floats(2.0, 50.0),
    has_sinks=st.booleans(),
)
def test_equals_the_reference(
    drawn: tuple[GroupBatch, int],
    num_kv_heads: int,
    group: int,
    k_head_dim: int,
    v_head_dim: int,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    batch, num_blocks = drawn
    kind = LayerKV(
        sliding_window=batch.sliding_window,
        num_kv_heads=num_kv_heads,
        k_head_dim=k_head_dim,
        v_head_dim=v_head_dim,
    )
    layout = KVLayout.of_layers(
        [kind] * 2, model_digest="m", block_size=batch.block_size, dtype="float32"
    )
    torch.manual_seed(0)
    num_tokens = len(batch.slot_blocks_T)
    num_heads = group * num_kv_heads
    params = AttentionParams(
        k_head_dim**-0.5, softcap, torch.randn(num_heads) if has_sinks else None
    )
    # As a model makes them: one token's heads side by side.
    packed = [
        torch.randn(num_tokens, heads, dim).transpose(0, 1)
        for heads, dim in ((num_heads, k_head_dim), (num_kv_heads, k_head_dim))
    ]
    packed.append(torch.randn(num_tokens, num_kv_heads, v_head_dim).transpose(0, 1))
    contents = torch.randn(num_blocks + 1, layout.block_bytes // 4)

    def run(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        storage = KVStorage(layout, num_blocks, "cpu")
        for block_id in range(num_blocks):
            storage.block(block_id).view(torch.float32).copy_(contents[block_id])
        backend: AttentionBackend = ATTENTION.get(name)("cpu", "float32")
        cache = storage.layers[1]
        out = backend.plan(batch, CPU).attend(cache, *packed, params)
        return out, torch.stack([storage.block(block_id) for block_id in range(num_blocks)])

    out, blocks = run("triton")
    expected_out, expected_blocks = run("sdpa")
    torch.testing.assert_close(out, expected_out, rtol=2e-5, atol=2e-5)
    assert torch.equal(blocks, expected_blocks)
