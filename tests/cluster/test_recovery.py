"""Actors die, and those that nobody wants end by themselves."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pdray.cluster.launch import down, in_use, up
from pdray.cluster.names import controller_name, is_controller, living_actors, worker_name
from pdray.config import PdrayConfig
from tests.cluster.conftest import (
    ClusterFrontend,
    MakeConfig,
    config_of,
    kill,
    processes_of,
    until_ended,
    until_gone,
)
from tests.local_cluster import num_placed_again

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def app(local_ray: None, tiny_model_path: Path) -> Iterator[PdrayConfig]:
    """A running application that the tests which get it leave running. Its workers outlive a
    controller for as long as it may hang."""
    controller = {"placement": "least_loaded", "worker_lease_s": 60.0, "unused_exit_s": 30.0}
    config = config_of(
        tiny_model_path, "recovery", controller=controller, transfer={"weights": "peer"}
    )
    up(config)
    with in_use(config):
        yield config
    down(config)


async def test_the_controllers_death_interrupts_no_stream_and_no_worker(app: PdrayConfig) -> None:
    async with ClusterFrontend(app) as frontend:
        expected = await frontend.generate("undisturbed", max_tokens=900)
        before = await frontend.client.status()
        stream = frontend.stream("disturbed", max_tokens=900)
        tokens = [await anext(stream)]
        kill(controller_name("recovery", app.generation))
        after = await frontend.until(lambda status: status.is_ready and status.num_in_flight == 1)
        tokens += [token async for token in stream]
        assert tokens == expected
        assert [w.worker_id for w in after.workers] == [w.worker_id for w in before.workers]
        assert await frontend.generate("new", max_tokens=900) == expected
        await frontend.until(lambda status: status.num_in_flight == 0)


async def test_requests_asked_while_there_is_no_controller_are_placed_by_the_next(
    app: PdrayConfig,
) -> None:
    async with ClusterFrontend(app) as frontend:
        expected = await frontend.generate("before")
        kill(controller_name("recovery", app.generation))
        answers = await asyncio.gather(*(frontend.generate(f"after-{i}") for i in range(8)))
        assert answers == [expected] * 8


async def test_a_dead_worker_is_followed_by_another_with_the_model_of_one_that_lives(
    app: PdrayConfig,
) -> None:
    async with ClusterFrontend(app) as frontend:
        expected = await frontend.generate("before")
        before = {w.pool: w.worker_id for w in (await frontend.client.status()).workers}
        kill(worker_name("recovery", app.generation, "decode", 0))
        await frontend.until(lambda status: not status.is_ready)
        waiting = asyncio.ensure_future(frontend.generate("queued"))
        status = await frontend.until(lambda status: status.is_ready)
        after = {w.pool: w.worker_id for w in status.workers}
        assert after["prefill"] == before["prefill"]
        assert after["decode"] not in (before["decode"], None)
        assert await waiting == expected
        name = worker_name("recovery", app.generation, "decode", 0)
        mapped = [each.path for each in processes_of("recovery")[name].memory_maps()]
        assert any(path.startswith("/memfd:model.safetensors") for path in mapped)
        for worker in status.workers:
            assert worker.startup is not None
            assert all(seconds > 0 for part, seconds in worker.startup.parts() if part != "meeting")


async def test_a_killed_decode_workers_stream_goes_on_with_the_next_one(app: PdrayConfig) -> None:
    async with ClusterFrontend(app) as frontend:
        expected = await frontend.generate("undisturbed", max_tokens=900)
        process = processes_of("recovery")[worker_name("recovery", app.generation, "decode", 0)]
        stream = frontend.stream("loses its worker", max_tokens=900)
        tokens = [await anext(stream) for _ in range(100)]
        process.kill()
        tokens += [token async for token in stream]
        assert tokens == expected
        assert num_placed_again(frontend.frontend) == 1
        await frontend.until(lambda status: status.is_ready and status.num_in_flight == 0)


async def test_a_controller_that_hangs_is_killed_and_interrupts_no_worker(
    app: PdrayConfig,
) -> None:
    async with ClusterFrontend(app) as frontend:
        expected = await frontend.generate("before")
        before = await frontend.until(lambda status: status.is_ready)
        process = processes_of("recovery")[controller_name("recovery", app.generation)]
        process.send_signal(signal.SIGSTOP)
        assert await frontend.generate("after") == expected
        after = await frontend.until(lambda status: status.is_ready)
        assert [w.worker_id for w in after.workers] == [w.worker_id for w in before.workers]
        await until_ended([process])


async def test_a_worker_that_hangs_is_killed_and_followed_by_another(
    make_config: MakeConfig,
) -> None:
    config = make_config(controller={"worker_lease_s": 5.0, "unused_exit_s": 30.0})
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await frontend.generate("before")
        for pool in ("prefill", "decode"):
            before = {w.pool: w.worker_id for w in (await frontend.client.status()).workers}
            process = processes_of("app")[worker_name("app", config.generation, pool, 0)]
            process.send_signal(signal.SIGSTOP)
            await frontend.until(lambda status: not status.is_ready)
            await until_ended([process])
            status = await frontend.until(lambda status: status.is_ready)
            after = {w.pool: w.worker_id for w in status.workers}
            assert {p for p in before if before[p] != after[p]} == {pool}
            assert await frontend.generate(f"after {pool}") == expected


async def test_an_application_whose_driver_ended_ends_by_itself(make_config: MakeConfig) -> None:
    config = make_config(controller={"worker_lease_s": 30.0, "unused_exit_s": 2.0})
    code = (
        "import sys, ray; from pdray.cluster.launch import up; "
        "from pdray.config import PdrayConfig; "
        "ray.init(sys.argv[1], log_to_driver=False); "
        "up(PdrayConfig.model_validate_json(sys.argv[2], strict=False))"
    )
    address = ray.get_runtime_context().gcs_address
    await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, address, config.model_dump_json()], check=True
    )
    assert any(map(is_controller, processes_of("app"))), "it was never there"
    await until_gone("app")


async def test_an_application_in_use_by_its_launcher_waits_for_a_frontend(
    make_config: MakeConfig,
) -> None:
    config = make_config(controller={"worker_lease_s": 30.0, "unused_exit_s": 1.0})
    await asyncio.to_thread(up, config)
    before = await living_actors("app")
    with in_use(config):
        await asyncio.sleep(3.0)  # three times what would end it
        assert await living_actors("app") == before
    await until_gone("app")


async def test_workers_that_no_controller_renews_end_by_themselves(
    make_config: MakeConfig,
) -> None:
    config = make_config(controller={"worker_lease_s": 8.0, "unused_exit_s": 60.0})
    await asyncio.to_thread(up, config)
    processes = processes_of("app")
    assert len(processes) == 3
    kill(controller_name("app", config.generation))
    await until_gone("app")
    await until_ended(processes.values())
