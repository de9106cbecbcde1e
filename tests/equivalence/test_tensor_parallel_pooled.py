"""Workers of two ranks in the whole data path: every rank's blocks move, through real NIXL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pdray.core.errors import RankLostError, WorkerLostError
from pdray.local import LocalCluster
from tests.equivalence.families import save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle

pytestmark = pytest.mark.slow

TWO = {"tensor_parallel": 2}
NUM_TOKENS = 16


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("family", ["llama", "gemma3_groups"])
async def test_tokens_equal_the_reference_alone_and_together(tmp_path: Path, family: str) -> None:
    save_family(family, tmp_path)
    prompts = random_prompts([1, 15, 16, 17, 63, 64, 65, 200, 300])
    requests = [request_of(p, NUM_TOKENS, request_id=str(i)) for i, p in enumerate(prompts)]
    config = config_of(tmp_path, prefill=TWO, decode=TWO)
    async with LocalCluster(config, tmp_path) as cluster:
        alone = [await tokens_of(cluster, request) for request in requests]
        await until_idle(cluster)
        together = await asyncio.gather(*(tokens_of(cluster, request) for request in requests))
        await until_idle(cluster)
    reference = Reference(tmp_path)
    references = reference.generate_all(prompts, NUM_TOKENS)
    assert_equal_up_to_ties(f"{family}, alone", alone, references)
    assert_equal_up_to_ties(f"{family}, together", together, references)


async def test_the_bytes_that_move_are_those_of_all_ranks(tiny_model_path: Path) -> None:
    (prompt,) = random_prompts([100])
    moved: list[float] = []
    for ranks in ({}, TWO):
        config = config_of(tiny_model_path, prefill=ranks, decode=ranks)
        async with LocalCluster(config, tiny_model_path) as cluster:
            await tokens_of(cluster, request_of(prompt))
            (decode,) = cluster.workers_of("decode")
            lines = decode.metrics_text().decode().splitlines()
            moved.append(
                sum(
                    float(line.rpartition(" ")[2])
                    for line in lines
                    if line.startswith("pdray_kv_transfer_bytes_total{")
                )
            )
    assert moved[0] == moved[1] > 0


async def test_the_next_turn_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    save_family("gemma3_groups", tmp_path)
    (history,) = random_prompts([100])
    config = config_of(tmp_path, prefill=TWO, decode=TWO)
    async with LocalCluster(config, tmp_path) as cluster:
        history += await tokens_of(cluster, request_of(history, 100, request_id="first"))
        history.append(7)
        stream = cluster.frontend.generate(request_of(history, NUM_TOKENS, request_id="second"))
        deltas = [delta async for delta in stream]
        await until_idle(cluster)
    assert deltas[0].num_cached_tokens == 192
    tokens = [token_id for delta in deltas for token_id in delta.token_ids]
    expected = Reference(tmp_path).generate(history, NUM_TOKENS)
    assert_equal_up_to_ties("gemma3_groups, second turn", [tokens], [expected])


@pytest.mark.parametrize("pool", ["prefill", "decode"])
async def test_a_killed_rank_ends_its_worker_with_a_clear_error(
    tiny_model_path: Path, pool: str
) -> None:
    controller = {"placement": "least_loaded", "queue_timeout_s": 0.5}
    config = config_of(tiny_model_path, controller=controller, **{pool: TWO})
    async with LocalCluster(config, tiny_model_path) as cluster:
        (worker,) = cluster.workers_of(pool)
        stream = cluster.frontend.generate(request_of([5] * 20, 400))
        await anext(stream)
        assert worker.engine.ranks is not None
        (follower,) = worker.engine.ranks.processes
        follower.kill()
        error = await asyncio.wait_for(worker.crashed(), 30)
        assert isinstance(error, RankLostError)
        assert "rank 1 was killed by SIGKILL" in str(error)
        if pool == "decode":
            with pytest.raises(WorkerLostError):
                async for _ in stream:
                    pass
        await stream.aclose()
