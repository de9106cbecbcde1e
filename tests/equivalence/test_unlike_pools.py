"""Pools of unlike ranks, block sizes and dtypes in the whole data path, through real NIXL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pdray.engine.sequence import Sequence
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.local import LocalCluster
from tests.equivalence.families import save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle

pytestmark = pytest.mark.slow

NUM_TOKENS = 16
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 100, 200, 300]

PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"block_size": 16}, {"block_size": 64}),
    ({"block_size": 64}, {"block_size": 16}),
    ({"tensor_parallel": 2}, {}),
    ({}, {"tensor_parallel": 2}),
    ({"tensor_parallel": 2, "block_size": 32}, {"block_size": 64}),
    ({"block_size": 48}, {"tensor_parallel": 2, "block_size": 32}),
]


@pytest.mark.parametrize(("prefill", "decode"), PAIRS)
async def test_tokens_equal_the_references(
    tmp_path: Path, prefill: dict[str, Any], decode: dict[str, Any]
) -> None:
    save_family("gemma3_groups", tmp_path)
    prompts = random_prompts(LENGTHS)
    requests = [request_of(p, NUM_TOKENS, request_id=str(i)) for i, p in enumerate(prompts)]
    config = config_of(tmp_path, prefill=prefill, decode=decode)
    async with LocalCluster(config, tmp_path) as cluster:
        alone = [await tokens_of(cluster, request) for request in requests]
        await until_idle(cluster)
        together = await asyncio.gather(*(tokens_of(cluster, request) for request in requests))
        await until_idle(cluster)
    reference = Reference(tmp_path)
    references = reference.generate_all(prompts, NUM_TOKENS)
    assert_equal_up_to_ties(f"{prefill} to {decode}, alone", alone, references)
    assert_equal_up_to_ties(f"{prefill} to {decode}, together", together, references)


async def test_kv_of_bf16_goes_on_in_fp32(tmp_path: Path) -> None:
    """The prompt's keys and values are bf16's own, to the bit."""
    save_family("llama", tmp_path)
    config = config_of(tmp_path, prefill={"dtype": "bfloat16"}, decode={"block_size": 32})
    async with LocalCluster(config, tmp_path) as cluster:
        (prefill,), (decode,) = cluster.workers_of("prefill"), cluster.workers_of("decode")
        lent: list[Sequence] = []
        compared = 0
        run, join = prefill.engine.add, decode.engine.add

        def compare_and_join(pulled: Sequence) -> None:
            nonlocal compared
            for layer, (theirs, ours) in enumerate(
                zip(prefill.engine.storage.layers, decode.engine.storage.layers, strict=True)
            ):
                for token in range(100):
                    their_id = lent[0].block_tables[0].block_ids[token // 16]
                    our_id = pulled.block_tables[0].block_ids[token // 32]
                    for their_view, our_view in (
                        (theirs.k_BKPH, ours.k_BKPH),
                        (theirs.v_BKPH, ours.v_BKPH),
                    ):
                        expected = their_view[their_id, :, token % 16].float()
                        assert expected.any(), f"layer {layer}, token {token}"
                        assert our_view[our_id, :, token % 32].equal(expected)
                        compared += 1
            join(pulled)

        prefill.engine.add = lambda each: (lent.append(each), run(each))[1]  # type: ignore[method-assign]
        decode.engine.add = compare_and_join  # type: ignore[method-assign]
        (prompt,) = random_prompts([100])
        assert len(await tokens_of(cluster, request_of(prompt))) == 16
    assert compared == 100 * 2 * len(decode.engine.storage.layers)


async def test_what_was_pulled_is_cached_under_the_names_that_its_owner_has(
    tmp_path: Path,
) -> None:
    save_family("llama", tmp_path)
    config = config_of(tmp_path, decode={"block_size": 64})
    async with LocalCluster(config, tmp_path) as cluster:
        (prefill,), (decode,) = cluster.workers_of("prefill"), cluster.workers_of("decode")
        (prompt,) = random_prompts([200])
        await tokens_of(cluster, request_of(prompt))
        await until_idle(cluster)
        sequence = Sequence.from_request(request_of(prompt), 0, is_lent=False)
        prefill.engine.prefix_cache.hash(sequence)
        names = dict(enumerate(sequence.prefix_hashes, 1))
        at_prefill = [
            n for n, name in names.items() if prefill.engine.pool.index.find((0, name)) is not None
        ]
        at_decode = [
            n for n, name in names.items() if decode.engine.pool.index.find((0, name)) is not None
        ]
    assert at_prefill == list(range(1, 200 // HASH_TOKENS + 1))
    assert at_decode == [4, 8, 12]


async def test_a_second_prompt_finds_at_decode_what_the_first_one_left(tmp_path: Path) -> None:
    """Only what its cache lacks moves."""
    save_family("gemma3_groups", tmp_path)
    config = config_of(tmp_path, prefill={"block_size": 32}, decode={"block_size": 16})
    first, tail = random_prompts([150, 60])
    prompts = [first, first + tail, first]
    requests = [request_of(p, NUM_TOKENS, request_id=str(i)) for i, p in enumerate(prompts)]
    async with LocalCluster(config, tmp_path) as cluster:
        answers = [await tokens_of(cluster, request) for request in requests]
        await until_idle(cluster)
        (decode,) = cluster.workers_of("decode")
        found = [
            float(line.rpartition(" ")[2])
            for line in decode.metrics_text().decode().splitlines()
            if line.startswith("pdray_") and "found" in line and "blocks" in line
        ]
    reference = Reference(tmp_path)
    references = reference.generate_all(prompts, NUM_TOKENS)
    assert_equal_up_to_ties("unlike pools with a warm cache", answers, references)
    assert max(found) > 0
