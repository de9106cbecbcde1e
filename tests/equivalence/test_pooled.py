"""The whole data path in one process: prefill and decode apart, through real links and NIXL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdray.core.errors import (
    InvalidRequestError,
    OverloadedError,
    SlowReaderError,
    UnavailableError,
    WorkerLostError,
)
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle


@pytest.fixture(scope="module")
def generate_reference(tiny_model_path: Path) -> Callable[[list[int], int], list[int]]:
    """transformers' own greedy tokens for a prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)

    def generate(prompt: list[int], max_tokens: int) -> list[int]:
        output = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=max_tokens,
            max_new_tokens=max_tokens,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    return generate


@pytest.fixture(params=["loopback", "nixl"])
async def cluster(
    tiny_model_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[LocalCluster]:
    config = config_of(tiny_model_path, transfer={"transport": request.param})
    async with LocalCluster(config, tiny_model_path) as cluster:
        yield cluster
        await until_idle(cluster)


async def test_tokens_equal_the_reference_alone_and_together(
    cluster: LocalCluster, generate_reference: Callable[[list[int], int], list[int]]
) -> None:
    prompts = random_prompts([1, 15, 16, 17, 63, 64, 65, 200, 300])
    alone = [
        await tokens_of(cluster, request_of(p, request_id=f"a{i}")) for i, p in enumerate(prompts)
    ]
    together = await asyncio.gather(
        *(tokens_of(cluster, request_of(p, request_id=f"t{i}")) for i, p in enumerate(prompts))
    )
    expected = [generate_reference(prompt, 16) for prompt in prompts]
    assert alone == expected
    assert together == expected


async def test_a_request_for_one_token_needs_no_decode_worker(cluster: LocalCluster) -> None:
    (prompt,) = random_prompts([40])
    assert len(await tokens_of(cluster, request_of(prompt, 1))) == 1
    (decode,) = cluster.workers_of("decode")
    assert b"pdray_kv_transfer_bytes_total{" not in decode.metrics_text()


async def test_sampling_does_not_depend_on_who_else_runs(cluster: LocalCluster) -> None:
    prompts = random_prompts([30, 70, 110])
    requests = [
        request_of(prompt, request_id=str(i), temperature=1.0) for i, prompt in enumerate(prompts)
    ]
    alone = [await tokens_of(cluster, request) for request in requests]
    assert alone == await asyncio.gather(*(tokens_of(cluster, request) for request in requests))


async def test_requests_cancelled_at_random_moments_give_all_blocks_back(
    cluster: LocalCluster,
) -> None:
    rng = random.Random(1)

    async def one(number: int, prompt: list[int]) -> None:
        request = request_of(prompt, 24, request_id=f"c{number}")
        if number % 3:
            assert len(await tokens_of(cluster, request)) == 24
            return
        running = asyncio.create_task(tokens_of(cluster, request))
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    prompts = random_prompts([rng.randrange(1, 300) for _ in range(60)])
    await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(prompts)))
    await until_idle(cluster)
    assert cluster.plane.num_in_flight == 0
    assert cluster.frontend.num_in_flight == 0


async def test_transferred_bytes_are_counted_by_transport_and_pools(cluster: LocalCluster) -> None:
    (prompt,) = random_prompts([100])
    await tokens_of(cluster, request_of(prompt, 4))
    (decode,) = cluster.workers_of("decode")
    transport = decode.config.transport
    line = next(
        line
        for line in decode.metrics_text().decode().splitlines()
        if line.startswith("pdray_kv_transfer_bytes_total{")
    )
    assert f'transport="{transport}"' in line
    assert 'source_pool="prefill"' in line
    assert 'target_pool="decode"' in line
    assert float(line.split()[-1]) == 7 * decode.engine.storage.block_bytes


async def test_of_a_prompt_only_the_blocks_move_that_the_decode_worker_lacks(
    cluster: LocalCluster, generate_reference: Callable[[list[int], int], list[int]]
) -> None:
    (shared,) = random_prompts([100])
    tails = random_prompts([30, 75], seed=1)
    (decode,) = cluster.workers_of("decode")
    num_moved = []
    for number, tail in enumerate([*tails, tails[1]]):
        before = counted(decode, "pdray_kv_transfer_bytes_total")
        tokens = await tokens_of(cluster, request_of(shared + tail, 16, request_id=f"{number}"))
        assert tokens == generate_reference(shared + tail, 16)
        bytes_moved = counted(decode, "pdray_kv_transfer_bytes_total") - before
        num_moved.append(bytes_moved / decode.engine.layout.block_bytes)
        await until_idle(cluster)
    assert num_moved == [9, 11 - 6, 1]  # of 130, 175 and 175 tokens; 100 are 6 whole blocks
    assert counted(decode, "pdray_kv_transfer_found_blocks_total") == 6 + 10
    block_bytes = decode.engine.layout.block_bytes
    assert counted(decode, "pdray_kv_transfer_found_bytes_total") == 16 * block_bytes


def counted(worker: Worker, name: str) -> float:
    """Over all labels."""
    families = text_string_to_metric_families(worker.metrics_text().decode())
    return sum(each.value for family in families for each in family.samples if each.name == name)


async def test_cancelled_requests_that_share_blocks_give_all_back(cluster: LocalCluster) -> None:
    (shared,) = random_prompts([200])
    await tokens_of(cluster, request_of(shared, 2, request_id="first"))
    rng = random.Random(2)

    async def one(number: int) -> None:
        prompt = shared[: rng.randrange(100, 200)] + [number + 10] * 20
        request = request_of(prompt, 24, request_id=f"s{number}")
        running = asyncio.create_task(tokens_of(cluster, request))
        await asyncio.sleep(rng.uniform(0.0, 0.4))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    await asyncio.gather(*map(one, range(24)))
    await until_idle(cluster)


async def test_a_decode_worker_with_too_little_kv_memory_queues(tiny_model_path: Path) -> None:
    config = config_of(tiny_model_path)
    async with LocalCluster(config, tiny_model_path) as roomy:
        prompts = random_prompts([120] * 12)
        expected = [
            await tokens_of(roomy, request_of(p, request_id=str(i))) for i, p in enumerate(prompts)
        ]
        block_bytes = roomy.workers[0].engine.storage.block_bytes
    small = config_of(tiny_model_path, decode={"kv_cache_bytes": 20 * block_bytes})
    async with LocalCluster(small, tiny_model_path) as cluster:
        together = await asyncio.gather(
            *(
                tokens_of(cluster, request_of(prompt, request_id=str(i)))
                for i, prompt in enumerate(prompts)
            )
        )
        await until_idle(cluster)
    assert together == expected


async def test_what_could_never_fit_is_refused_at_once(tiny_model_path: Path) -> None:
    config = config_of(tiny_model_path)
    async with LocalCluster(config, tiny_model_path) as cluster:
        with pytest.raises(InvalidRequestError, match="context is 512 tokens; the prompt has 600"):
            await tokens_of(cluster, request_of([5] * 600))
        with pytest.raises(InvalidRequestError, match="max_tokens asks for 600"):
            await tokens_of(cluster, request_of([5] * 10, 600))
        with pytest.raises(InvalidRequestError, match="prompt is empty"):
            await tokens_of(cluster, request_of([]))


async def test_past_the_queues_bound_requests_are_refused_with_a_time_to_retry(
    tiny_model_path: Path,
) -> None:
    one_seat = {"max_batch_size": 1}
    config = config_of(
        tiny_model_path,
        prefill=one_seat,
        decode=one_seat,
        controller={"max_queued_requests": 2},
    )
    async with LocalCluster(config, tiny_model_path) as cluster:
        outcomes = await asyncio.gather(
            *(tokens_of(cluster, request_of([5] * 20, 40, request_id=str(i))) for i in range(8)),
            return_exceptions=True,
        )
        await until_idle(cluster)
    refused = [each for each in outcomes if isinstance(each, OverloadedError)]
    assert len(refused) == 4
    assert all(each.retry_after_s >= 1 for each in refused)
    assert sum(isinstance(each, list) for each in outcomes) == 4


async def test_a_reader_that_does_not_read_is_cut_and_its_blocks_freed(
    tiny_model_path: Path,
) -> None:
    config = config_of(tiny_model_path, serve={"slow_reader_tokens": 8})
    async with LocalCluster(config, tiny_model_path) as cluster:
        stream = cluster.frontend.generate(request_of([5] * 20, 400))
        await anext(stream)
        await until_idle(cluster)
        with pytest.raises(SlowReaderError):
            async for _ in stream:
                pass


async def test_a_lost_frontend_costs_its_requests_only(tiny_model_path: Path) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        stream = cluster.frontend.generate(request_of([5] * 20, 400))
        await anext(stream)
        await cluster.frontend.stop()
        await until_idle(cluster)
        await stream.aclose()


async def test_one_mixed_worker_serves_alone(
    tiny_model_path: Path, generate_reference: Callable[[list[int], int], list[int]]
) -> None:
    engine = config_of(tiny_model_path).pools["prefill"].engine.model_dump(exclude_none=True)
    pools = {"all": {"role": "mixed", "node_groups": ["laptop"], "engine": engine}}
    prompts = random_prompts([1, 40, 100, 200])
    async with LocalCluster(config_of(tiny_model_path, pools=pools), tiny_model_path) as cluster:
        requests = [request_of(prompt, request_id=str(i)) for i, prompt in enumerate(prompts)]
        together = await asyncio.gather(*(tokens_of(cluster, each) for each in requests))
        await until_idle(cluster)
    assert together == [generate_reference(prompt, 16) for prompt in prompts]


async def test_with_no_worker_left_a_crashed_one_fails_its_requests(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = {"placement": "least_loaded", "queue_timeout_s": 0.5}
    config = config_of(tiny_model_path, controller=controller)
    async with LocalCluster(config, tiny_model_path) as cluster:
        (decode,) = cluster.workers_of("decode")
        stream = cluster.frontend.generate(request_of([5] * 20, 400))
        await anext(stream)
        monkeypatch.setattr(decode.engine, "step", lambda: 1 / 0)
        with pytest.raises(WorkerLostError, match="worker decode-0-local was lost"):
            async for _ in stream:
                pass
        with pytest.raises(UnavailableError):
            await tokens_of(cluster, request_of([5] * 20, request_id="next"))
