"""Pools that scale themselves, on a real Ray."""

from __future__ import annotations

import asyncio

import pytest

from pdray.cluster.launch import up
from pdray.cluster.messages import ControllerStatus
from pdray.cluster.names import controller_name
from pdray.core.snapshot import WorkerState
from tests.cluster.conftest import ClusterFrontend, MakeConfig, kill, processes_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENGINE = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}
POOL = {"node_groups": ["laptop"], "engine": ENGINE}
QUICK = {
    "min_replicas": 1,
    "max_replicas": 2,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 2.0,
    "metrics_interval_s": 0.25,
    "look_back_period_s": 0.5,
    "signals": {"queue_length": 2.0},
}


def pools_of(**decode: object) -> dict[str, object]:
    policy = QUICK | decode
    return {
        "prefill": POOL | {"role": "prefill"},
        "decode": POOL | {"role": "decode", "autoscaling": policy},
    }


def num_ready(status: ControllerStatus, pool: str = "decode") -> int:
    return sum(
        worker.pool == pool and worker.state is WorkerState.READY for worker in status.workers
    )


def num_places(status: ControllerStatus, pool: str = "decode") -> int:
    return sum(worker.pool == pool for worker in status.workers)


@pytest.mark.timeout(180)
async def test_load_brings_a_worker_its_end_takes_it_and_no_stream_notices(
    make_config: MakeConfig,
) -> None:
    config = make_config(pools=pools_of())
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await frontend.generate("calm", max_tokens=700)
        ended = asyncio.Event()

        async def ask_on(name: str) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                answer = await frontend.generate(f"{name}-{number}", max_tokens=700)
                assert answer == expected

        async with asyncio.TaskGroup() as tasks:
            for index in range(6):
                tasks.create_task(ask_on(f"r{index}"))
            await frontend.until(lambda status: num_ready(status) == 2)
            kill(controller_name(config.serve.application, config.generation))
            again = await frontend.until(lambda status: num_ready(status) >= 1)
            assert again.desired_workers["decode"] == 2, "a remade controller keeps what there is"
            await frontend.until(lambda status: num_ready(status) == 2)
            ended.set()
        long_one = asyncio.create_task(frontend.generate("long", max_tokens=700))
        await frontend.until(lambda status: num_places(status) == 1)
        assert await long_one == expected
        decisions = await frontend.client.scaling()
        changes = [each.decision for each in decisions if each.decision.is_change]
        assert changes[-1].allowed == 1
        workers = [name for name in processes_of("app") if ":worker:decode:" in name]
        assert len(workers) == 1


@pytest.mark.timeout(180)
async def test_a_pool_that_went_to_none_answers_the_next_request(make_config: MakeConfig) -> None:
    config = make_config(
        pools=pools_of(min_replicas=0, downscale_to_zero_delay_s=1.0),
    )
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await frontend.generate("first")
        none = await frontend.until(lambda status: num_places(status) == 0)
        assert none.can_place, "health does not depend on a worker that a request would bring"
        assert not [name for name in processes_of("app") if ":worker:decode:" in name]
        assert await frontend.generate("second") == expected


@pytest.mark.timeout(180)
async def test_a_standby_takes_work_as_soon_as_it_is_wanted(make_config: MakeConfig) -> None:
    config = make_config(pools=pools_of(max_replicas=2, standby_replicas=1))
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        await frontend.until(lambda status: num_ready(status) == 2)
        streams = [
            asyncio.create_task(frontend.generate(f"r{index}", max_tokens=700))
            for index in range(8)
        ]
        while True:
            overview = await frontend.client.overview()
            (decision,) = (each.decision for each in overview.scaling)
            if decision.current == 2:
                break
            assert not all(stream.done() for stream in streams)
            await asyncio.sleep(0.05)
        await asyncio.gather(*streams)
