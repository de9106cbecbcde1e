"""Modes, roles and what an operator sees of them, on a real Ray."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest

from pdray.cluster.launch import up
from pdray.cluster.names import controller_name
from pdray.core.overview import Overview
from tests.cluster.conftest import ClusterFrontend, MakeConfig, greedy, kill

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENGINE = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}
MIXED = {"role": "mixed", "replicas": 2, "node_groups": ["laptop"], "engine": ENGINE}


@pytest.mark.parametrize(("mode", "how"), [("soft", "one_pool"), ("auto", "cheaper")])
async def test_one_pool_of_mixed_workers_serves(
    mode: str, how: str, make_config: MakeConfig
) -> None:
    config = make_config(mode=mode, pools={"mixed": MIXED}, controller={"placement": "cost"})
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        answers = await asyncio.gather(*(frontend.generate(f"r{index}") for index in range(8)))
        overview = await frontend.client.overview()
    assert len({tuple(answer) for answer in answers}) == 1
    assert overview.num_placed_by_how[how] > 0
    assert sum(overview.num_placed_by_how.values()) == 8
    assert {worker.role for worker in overview.workers} == {"mixed"}


async def test_an_operator_sees_latencies_transfers_and_workers(make_config: MakeConfig) -> None:
    config = make_config()
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        for index in range(3):
            await frontend.generate(f"r{index}")

        async def has_all() -> Overview:
            while True:
                overview = await frontend.client.overview()
                if overview.pairs and overview.ttft and overview.ttft.count == 3:
                    return overview
                await asyncio.sleep(0.1)

        overview = await asyncio.wait_for(has_all(), 20)
    assert overview.itl is not None
    assert 0 < overview.itl.p50_s <= overview.itl.max_s < 10
    (pair,) = overview.pairs
    assert (pair.source, pair.target) == ("prefill", "decode")
    assert pair.num_bytes > 0
    assert overview.disaggregated_share == 1.0
    assert [(worker.pool, worker.state) for worker in overview.workers] == [
        ("prefill", "ready"),
        ("decode", "ready"),
    ]


async def test_a_worker_takes_the_role_that_the_load_asks_for_and_keeps_it_with_a_new_controller(
    make_config: MakeConfig,
) -> None:
    engine = ENGINE | {"max_batch_size": 64}  # one decode worker is enough for all
    decode = {"role": "decode", "replicas": 2, "node_groups": ["laptop"], "engine": engine}
    config = make_config(
        pools={"prefill": decode | {"role": "prefill", "replicas": 1}, "decode": decode},
        roles={"prefill": {"min": 1, "max": 2}, "decode": {"min": 1, "max": 2}},
        slo={"ttft_s": 0.001, "itl_s": 5.0},  # any queue at all is one too long
    )
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await tokens_of_a_prompt(frontend, "calm")
        flipped = asyncio.Event()

        async def ask_on(index: int) -> None:
            for number in itertools.count():
                if flipped.is_set():
                    return
                assert await tokens_of_a_prompt(frontend, f"r{index}-{number}") == expected

        async def roles() -> list[tuple[str, str]]:
            workers = (await frontend.client.overview()).workers
            return sorted((each.pool, each.role) for each in workers if each.state == "ready")

        after = [("decode", "decode"), ("decode", "prefill"), ("prefill", "prefill")]

        async def watch() -> None:
            while await roles() != after:
                await asyncio.sleep(0.2)
            flipped.set()

        async with asyncio.timeout(90):
            await asyncio.gather(watch(), *(ask_on(index) for index in range(12)))
            assert await tokens_of_a_prompt(frontend, "after") == expected
            await asyncio.sleep(1.0)  # a heartbeat or two
            kill(controller_name(config.serve.application, config.generation))
            while len(found := await roles()) < 3:
                await asyncio.sleep(0.2)
        assert found == after
        assert await tokens_of_a_prompt(frontend, "later") == expected


async def tokens_of_a_prompt(frontend: ClusterFrontend, request_id: str) -> list[int]:
    """Of one that is in no prefix cache."""
    prompt = tuple(1 + index % 200 for index in range(300))
    request = replace(greedy(request_id, 16), prompt_token_ids=prompt, cache_salt=request_id)
    deltas = [delta async for delta in frontend.frontend.generate(request)]
    return [token_id for delta in deltas for token_id in delta.token_ids]
