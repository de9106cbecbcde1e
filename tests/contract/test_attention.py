"""Every registered attention backend, against attention written out for one query at a time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pdray.core.request import Request
from pdray.engine.attention import ATTENTION
from pdray.engine.attention.base import AttentionParams
from pdray.engine.batch import build_batch
from pdray.engine.decode_graphs import scratch_decodes
from pdray.engine.scheduler import ScheduledChunk, StepPlan
from pdray.engine.sequence import BlockTable, Sequence
from pdray.kvcache.layout import KVLayout, LayerKV
from pdray.kvcache.storage import KVStorage, LayerCache
from tests.engine_driver import request_of

BLOCK_SIZE = 16
NUM_BLOCKS = 96
CPU = torch.device("cpu")
BACKENDS = [name for name in ATTENTION.names() if name != "auto"]
# Triton's interpreter takes seconds for a prompt; decodes are quick.
MARKED = [
    pytest.param(name, marks=pytest.mark.slow) if name == "triton" else name for name in BACKENDS
]


@dataclass(frozen=True)
class Case:
    """``sequences`` are (computed tokens, new tokens): decodes, with one new token, come first."""

    sequences: tuple[tuple[int, int], ...]
    sliding_window: int | None = None
    num_heads: int = 4
    num_kv_heads: int = 2
    k_head_dim: int = 8
    v_head_dim: int = 8
    softcap: float | None = None
    has_sinks: bool = False
    dtype: str = "float32"
    block_size: int = BLOCK_SIZE


MIXED = ((1, 1), (15, 1), (16, 1), (17, 1), (100, 1), (0, 1), (0, 40), (16, 33), (37, 20))
CASES = {
    "one prompt": Case(((0, 50),)),
    "one decode": Case(((50, 1),)),
    "mixed": Case(MIXED),
    "window": Case(MIXED, sliding_window=20),
    "window of one": Case(MIXED, sliding_window=1),
    "window of a block": Case(MIXED, sliding_window=BLOCK_SIZE),
    "multi-head": Case(MIXED, num_kv_heads=4),
    "multi-query": Case(MIXED, num_kv_heads=1),
    "softcap": Case(MIXED, softcap=5.0),
    "sinks": Case(MIXED, has_sinks=True),
    "sinks and window": Case(MIXED, has_sinks=True, sliding_window=20),
    "unequal head dims": Case(MIXED, k_head_dim=12, v_head_dim=8),
    "unequal head dims and window": Case(MIXED, k_head_dim=8, v_head_dim=20, sliding_window=20),
    "bfloat16": Case(MIXED, dtype="bfloat16", sliding_window=20),
    "eight queries per key": Case(MIXED, num_heads=8, num_kv_heads=1, block_size=32),
    "three queries per key": Case(MIXED, num_heads=6, block_size=64, sliding_window=33),
    "head dim of 80": Case(MIXED, k_head_dim=80, v_head_dim=80, block_size=48),
    "seven queries per key": Case(
        MIXED, num_heads=7, num_kv_heads=1, k_head_dim=128, v_head_dim=128, softcap=20.0
    ),
    "head dim of 192 and 128 in bfloat16": Case(
        MIXED, num_heads=8, k_head_dim=192, v_head_dim=128, dtype="bfloat16", sliding_window=21
    ),
    "head dim of 100": Case(MIXED, num_heads=12, k_head_dim=100, v_head_dim=100),
    "long contexts": Case(((700, 1), (130, 1), (3, 1), (333, 90)), has_sinks=True, softcap=9.0),
    "long contexts and window": Case(((700, 1), (3, 1), (333, 150)), sliding_window=300),
}


@dataclass
class Setup:
    """Random keys and values of whole sequences; what is computed lies in the cache already."""

    plan: StepPlan
    layout: KVLayout
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    queries: list[torch.Tensor]
    params: AttentionParams

    def packed(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """[heads, T, H] of the new tokens alone."""
        chunks = self.plan.chunks
        news = [each[:, chunk.start :] for each, chunk in zip(tensors, chunks, strict=True)]
        return torch.cat(news, dim=1)


def setup_of(case: Case, cache_of: CacheOf) -> tuple[Setup, LayerCache]:
    torch.manual_seed(0)
    kind = LayerKV(
        sliding_window=case.sliding_window,
        num_kv_heads=case.num_kv_heads,
        k_head_dim=case.k_head_dim,
        v_head_dim=case.v_head_dim,
    )
    # The middle one of three layers, so that a wrong stride or offset is seen.
    layout = KVLayout.of_layers(
        [kind] * 3, model_digest="m", block_size=case.block_size, dtype=case.dtype
    )
    cache, block_ids = cache_of(layout)
    dtype = getattr(torch, case.dtype)
    chunks, keys, values, queries = [], [], [], []
    for computed, new in case.sequences:
        total = computed + new
        sequence = sequence_with_blocks(case, total, computed, block_ids)
        chunks.append(ScheduledChunk(sequence, computed, new))
        keys.append(torch.randn(case.num_kv_heads, total, case.k_head_dim, dtype=dtype))
        values.append(torch.randn(case.num_kv_heads, total, case.v_head_dim, dtype=dtype))
        queries.append(torch.randn(case.num_heads, total, case.k_head_dim, dtype=dtype))
        write_computed(cache, sequence.block_tables[0], computed, keys[-1], values[-1])
    num_decodes = sum(computed > 0 and new == 1 for computed, new in case.sequences)
    params = AttentionParams(
        scaling=case.k_head_dim**-0.5 * 1.7,
        softcap=case.softcap,
        sinks_N=torch.randn(case.num_heads, dtype=dtype) if case.has_sinks else None,
    )
    plan = StepPlan(tuple(chunks), num_decodes, 0)
    return Setup(plan, layout, keys, values, queries, params), cache


def sequence_with_blocks(case: Case, total: int, computed: int, block_ids: list[int]) -> Sequence:
    """Holds no block that a window has left behind, and ids in no order."""
    window = case.sliding_window
    first = 0 if window is None else max(0, computed - window + 1) // case.block_size
    num_blocks = -(-total // case.block_size) - first
    request: Request = request_of(range(total))
    sequence = Sequence.from_request(request, 0, is_lent=False)
    sequence.block_tables = [BlockTable(first, [block_ids.pop() for _ in range(num_blocks)])]
    return sequence


def write_computed(
    cache: LayerCache, table: BlockTable, computed: int, key: torch.Tensor, value: torch.Tensor
) -> None:
    block_size = cache.k_BKPH.shape[2]
    for position in range(table.first_block * block_size, computed):
        block_id = table.block_ids[position // block_size - table.first_block]
        cache.k_BKPH[block_id, :, position % block_size] = key[:, position]
        cache.v_BKPH[block_id, :, position % block_size] = value[:, position]


def oracle(setup: Setup, case: Case) -> torch.Tensor:
    """[T, N, H], one query and one head at a time, in fp64."""
    outs = []
    for index, chunk in enumerate(setup.plan.chunks):
        for position in range(chunk.start, chunk.end):
            first = 0 if case.sliding_window is None else position - case.sliding_window + 1
            seen = slice(max(0, first), position + 1)
            outs.append(
                torch.stack(
                    [
                        attend_one(setup, case, index, position, seen, head)
                        for head in range(case.num_heads)
                    ]
                )
            )
    return torch.stack(outs)


def attend_one(
    setup: Setup, case: Case, index: int, position: int, seen: slice, head: int
) -> torch.Tensor:
    kv_head = head * case.num_kv_heads // case.num_heads
    query = setup.queries[index][head, position].double()
    scores = setup.keys[index][kv_head, seen].double() @ query * setup.params.scaling
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    weights = scores.exp()
    total = weights.sum()
    if setup.params.sinks_N is not None:
        total = total + setup.params.sinks_N[head].double().exp()
    return (weights / total) @ setup.values[index][kv_head, seen].double()


class CacheOf:
    """A small arena, with numbers in it that must not be read: another's old keys and values."""

    def __call__(self, layout: KVLayout) -> tuple[LayerCache, list[int]]:
        storage = KVStorage(layout, NUM_BLOCKS, "cpu")
        for layer in storage.layers:
            layer.k_BKPH.fill_(50.0)
            layer.v_BKPH.fill_(-50.0)
        block_ids = torch.randperm(NUM_BLOCKS).tolist()
        return storage.layers[1], block_ids


class FarCacheOf:
    """An arena of more than 2**31 elements, used at its far end: memory is taken where written."""

    def __call__(self, layout: KVLayout) -> tuple[LayerCache, list[int]]:
        elements = layout.block_bytes // layout.dtype_bytes
        num_blocks = (1 << 31) // elements + 2 * NUM_BLOCKS
        storage = KVStorage(layout, num_blocks, "cpu")
        assert num_blocks * elements > (1 << 31) + NUM_BLOCKS * elements
        return storage.layers[1], list(range(num_blocks - NUM_BLOCKS, num_blocks))


def run(backend: str, setup: Setup, cache: LayerCache) -> torch.Tensor:
    batch = build_batch(setup.plan, setup.layout.groups, setup.layout.block_size)
    attention = ATTENTION.get(backend)("cpu", setup.layout.dtype).plan(batch.groups[0], CPU)
    with torch.inference_mode():
        return attention.attend(
            cache,
            setup.packed(setup.queries),
            setup.packed(setup.keys),
            setup.packed(setup.values),
            setup.params,
        )


def assert_written(setup: Setup, cache: LayerCache) -> None:
    block_size = setup.layout.block_size
    for chunk, key, value in zip(setup.plan.chunks, setup.keys, setup.values, strict=True):
        table = chunk.sequence.block_tables[0]
        for position in range(chunk.start, chunk.end):
            block_id = table.block_ids[position // block_size - table.first_block]
            offset = position % block_size
            assert torch.equal(cache.k_BKPH[block_id, :, offset], key[:, position])
            assert torch.equal(cache.v_BKPH[block_id, :, offset], value[:, position])


@pytest.mark.parametrize("backend", MARKED)
@pytest.mark.parametrize("name", list(CASES))
def test_equals_the_oracle(backend: str, name: str) -> None:
    case = CASES[name]
    setup, cache = setup_of(case, CacheOf())
    out = run(backend, setup, cache)
    assert out.shape[1:] == (case.num_heads, case.v_head_dim)
    tolerance = 1e-5 if case.dtype == "float32" else 3e-2
    torch.testing.assert_close(out.double(), oracle(setup, case), rtol=tolerance, atol=tolerance)
    assert_written(setup, cache)


DECODES = ((1, 1), (15, 1), (16, 1), (17, 1), (100, 1))
STATIC_CASES = {
    "decodes": Case(DECODES),
    "one": Case(((50, 1),)),
    "window": Case(DECODES, sliding_window=20),
    "window of one": Case(DECODES, sliding_window=1),
    "softcap, sinks and window": Case(DECODES, softcap=5.0, has_sinks=True, sliding_window=20),
    "unequal head dims": Case(DECODES, k_head_dim=12, v_head_dim=8, num_kv_heads=1),
    "bfloat16": Case(DECODES, dtype="bfloat16"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(STATIC_CASES))
def test_a_static_plan_serves_whatever_was_filled_in_last(backend: str, name: str) -> None:
    case = STATIC_CASES[name]
    setup, cache = setup_of(case, CacheOf())
    group = build_batch(setup.plan, setup.layout.groups, BLOCK_SIZE).groups[0]
    count, max_blocks = group.num_decodes, 10
    static_backend = ATTENTION.get(backend)("cpu", case.dtype)
    first = scratch_decodes(setup.layout.groups[0], BLOCK_SIZE, count, NUM_BLOCKS)
    try:
        attention = static_backend.plan_static(first, max_blocks, CPU)
    except NotImplementedError:
        pytest.skip(f"{backend} has no static plans")
    packed = [setup.packed(each) for each in (setup.queries, setup.keys, setup.values)]
    with torch.inference_mode():
        attention.attend(cache, *packed, setup.params)
        attention.refill(group)
        out = attention.attend(cache, *packed, setup.params)
    tolerance = 1e-5 if case.dtype == "float32" else 3e-2
    torch.testing.assert_close(out.double(), oracle(setup, case), rtol=tolerance, atol=tolerance)
    assert_written(setup, cache)


@pytest.mark.parametrize("backend", MARKED)
@pytest.mark.parametrize("window", [None, 20])
def test_offsets_past_2_to_31_elements(backend: str, window: int | None) -> None:
    case = Case(MIXED, sliding_window=window, k_head_dim=64, v_head_dim=64)
    setup, cache = setup_of(case, FarCacheOf())
    out = run(backend, setup, cache)
    torch.testing.assert_close(out.double(), oracle(setup, case), rtol=1e-5, atol=1e-5)
    assert_written(setup, cache)


@pytest.mark.parametrize("backend", MARKED)
def test_long_contexts_go_tile_by_tile(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pdray.engine.attention import prompts

    monkeypatch.setattr(prompts, "MAX_SCORES", 1000)
    case = Case(MIXED, softcap=5.0, has_sinks=True, sliding_window=20)
    setup, cache = setup_of(case, CacheOf())
    out = run(backend, setup, cache)
    torch.testing.assert_close(out.double(), oracle(setup, case), rtol=1e-5, atol=1e-5)


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="sdpa"):
        ATTENTION.get("flash")
