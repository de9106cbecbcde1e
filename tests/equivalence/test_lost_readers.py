"""Decode workers that end in the middle of a pull: the prompt is computed once all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pdray.config import PdrayConfig
from pdray.core.errors import WorkerLostError
from pdray.core.snapshot import WorkerState
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.local_cluster import (
    config_of,
    is_idle,
    random_prompts,
    request_of,
    tokens_of,
    until_idle,
)
from tests.worker_peer import until

PROMPT_TOKENS = 320


def config_with(
    model_path: Path, *, num_decode_workers: int, transport: str, queue_timeout_s: float = 60.0
) -> PdrayConfig:
    """Prompts of PROMPT_TOKENS take 20 steps, and their blocks as many reads."""
    config = config_of(
        model_path,
        prefill={"max_tokens_per_step": 16},
        transfer={"transport": transport, "lease_s": 2.0},
        controller={"placement": "least_loaded", "queue_timeout_s": queue_timeout_s},
    )
    decode = config.pools["decode"].model_copy(update={"replicas": num_decode_workers})
    return config.model_copy(update={"pools": config.pools | {"decode": decode}})


def is_pulling(worker: Worker) -> bool:
    """It has begun to read a prompt of which there is more to come, and goes on."""
    marks = [pull.watermark for pull in worker._pulling._pulls.values()]
    is_reading = any(mark is not None and mark.first_token_id is None for mark in marks)
    return is_reading and worker.state is WorkerState.READY


async def stop_one_that_pulls(workers: list[Worker]) -> Worker:
    await until(lambda: any(map(is_pulling, workers)))
    pulling = next(filter(is_pulling, workers))
    await pulling.stop()
    return pulling


def num_computed_tokens(worker: Worker) -> float:
    (line,) = (
        line
        for line in worker.metrics_text().decode().splitlines()
        if line.startswith("pdray_engine_tokens_total{") and 'phase="prefill"' in line
    )
    return float(line.split()[-1])


@pytest.mark.parametrize("transport", ["loopback", "nixl"])
async def test_the_next_candidate_reads_what_is_computed_already(
    tiny_model_path: Path, transport: str
) -> None:
    config = config_with(tiny_model_path, num_decode_workers=3, transport=transport)
    lost, whole = random_prompts([PROMPT_TOKENS] * 2)
    async with LocalCluster(config, tiny_model_path) as cluster:
        (prefill,) = cluster.workers_of("prefill")
        expected = await tokens_of(cluster, request_of(lost, request_id="calm"))
        await tokens_of(cluster, request_of(whole, request_id="other"))
        await until_idle(cluster)
        before = num_computed_tokens(prefill)
        again = request_of(lost, request_id="lost", cache_salt="another")
        reading = asyncio.create_task(tokens_of(cluster, again))
        stopped = [await stop_one_that_pulls(cluster.workers_of("decode")) for _ in range(2)]
        assert stopped[0] is not stopped[1]
        assert await reading == expected
        assert num_computed_tokens(prefill) == before + PROMPT_TOKENS
        left = [worker for worker in cluster.workers if worker not in stopped]
        await until(lambda: all(map(is_idle, left)))


async def test_with_nobody_left_the_request_fails_and_says_why(tiny_model_path: Path) -> None:
    config = config_with(
        tiny_model_path, num_decode_workers=1, transport="loopback", queue_timeout_s=0.5
    )
    (prompt,) = random_prompts([PROMPT_TOKENS])
    async with LocalCluster(config, tiny_model_path) as cluster:
        reading = asyncio.create_task(tokens_of(cluster, request_of(prompt)))
        await stop_one_that_pulls(cluster.workers_of("decode"))
        with pytest.raises(WorkerLostError, match="decode-0-local was lost"):
            await reading
        (prefill,) = cluster.workers_of("prefill")
        await until(lambda: prefill.snapshot().num_held_blocks == 0)
        await until(lambda: prefill.snapshot().num_quarantined_blocks == 0)


async def test_of_many_requests_those_that_decoded_there_are_answered_too(
    tiny_model_path: Path,
) -> None:
    config = config_with(tiny_model_path, num_decode_workers=3, transport="nixl")
    prompts = random_prompts([PROMPT_TOKENS] * 9)
    async with LocalCluster(config, tiny_model_path) as cluster:
        calm = [
            await tokens_of(cluster, request_of(p, request_id=f"calm {i}"))
            for i, p in enumerate(prompts)
        ]
        requests = [
            request_of(p, request_id=str(i), cache_salt="another") for i, p in enumerate(prompts)
        ]
        reading = asyncio.gather(*(tokens_of(cluster, each) for each in requests))
        await stop_one_that_pulls(cluster.workers_of("decode"))
        assert await reading == calm
        (prefill,) = cluster.workers_of("prefill")
        await until(lambda: prefill.snapshot().num_held_blocks == 0)
        await until(lambda: prefill.snapshot().num_quarantined_blocks == 0)
