"""The application under Ray Serve: deployed again, and deleted by somebody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from pdray.cluster.names import controller_name, living_actors
from pdray.config import PdrayConfig
from pdray.serve.app import build_app
from pdray.serve.free_port import free_port
from tests.cluster.conftest import (
    NUM_CPUS,
    config_of,
    processes_of,
    until_ended,
    until_gone,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAME = "under-serve"


@pytest.fixture(scope="module")
def serve_runs(local_ray: None) -> Iterator[int]:
    """Its port."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


def deploy(config: PdrayConfig) -> None:
    application = build_app({"config": config.model_dump(mode="json")})
    serve.run(application, name=NAME, route_prefix="/under-serve")


def config_with(model_path: Path, **changes: object) -> PdrayConfig:
    controller = {"worker_lease_s": 30.0, "unused_exit_s": 4.0}
    return config_of(model_path, NAME, controller=controller, **changes)


async def test_deployed_again_and_deleted_by_another_process_it_leaves_no_process(
    serve_runs: int, tiny_model_path: Path
) -> None:
    first = config_with(tiny_model_path)
    await asyncio.to_thread(deploy, first)
    first_processes = processes_of(NAME)
    assert len(first_processes) == 3

    # A new replica, and the goodbye of the old one, but the same generation.
    renamed = config_with(tiny_model_path, served_model_name="renamed")
    assert renamed.generation == first.generation
    await asyncio.to_thread(deploy, renamed)
    await asyncio.sleep(6.0)  # longer than a controller that nobody uses would live
    assert processes_of(NAME) == first_processes

    changed = config_with(tiny_model_path, dtype="bfloat16")
    await asyncio.to_thread(deploy, changed)
    await until_ended(first_processes.values())
    assert controller_name(NAME, changed.generation) in await living_actors(NAME)
    changed_processes = processes_of(NAME)
    assert len(changed_processes) == 3

    code = (
        "import sys, ray; from ray import serve; ray.init(sys.argv[1]); serve.delete(sys.argv[2])"
    )
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", code, address, NAME]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    await until_gone(NAME)
    await until_ended(changed_processes.values())


async def text_of(client: httpx.AsyncClient, max_tokens: int) -> str:
    """A stream's, to its end. Raises where that is not as it should be."""
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": max_tokens, "ignore_eos": True}
    body |= {"temperature": 0.0, "stream": True}
    text, finish_reason = "", None
    async with client.stream("POST", "completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        # Not by httpx's lines, which end at characters that this model may say as well.
        for line in (await answer.aread()).split(b"\n"):
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line.removeprefix(b"data: "))["choices"]
                text += choice["text"]
                finish_reason = choice["finish_reason"]
    assert finish_reason == "length"
    return text


async def test_a_changed_config_rolls_through_under_streams_and_fails_none(
    serve_runs: int, tiny_model_path: Path
) -> None:
    engine = {"kv_cache_bytes": "16MiB", "num_threads": 1, "max_model_len": 1024}
    pool = {"node_groups": ["laptop"], "engine": engine}
    # There is room for one more: the new generation gets the places of the old one by one.
    assert NUM_CPUS == 4
    pools = {
        "prefill": pool | {"role": "prefill"},
        "decode": pool | {"role": "decode", "replicas": 2},
    }
    settings: dict[str, object] = {"served_model_name": "tiny", "pools": pools}
    first = config_with(tiny_model_path, **settings)
    changed = config_with(tiny_model_path, **settings, slo={"itl_s": 0.5})
    assert first.generation != changed.generation
    await asyncio.to_thread(deploy, first)
    first_processes = processes_of(NAME)
    assert len(first_processes) == 1 + 3
    url = f"http://127.0.0.1:{serve_runs}/under-serve/v1/"
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        expected = {n: await text_of(client, n) for n in (20, 200, 800)}
        is_over = asyncio.Event()

        async def ask_on(max_tokens: int) -> int:
            num_answers = 0
            while not is_over.is_set():
                assert await text_of(client, max_tokens) == expected[max_tokens]
                num_answers += 1
            return num_answers

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(ask_on(n)) for n in (20, 200, 800)]
            await asyncio.to_thread(deploy, changed)
            await until_ended(first_processes.values())
            is_over.set()
        assert all(each.result() > 1 for each in asking)
    assert len(processes_of(NAME)) == 1 + 3
    await asyncio.to_thread(serve.delete, NAME)
    await until_gone(NAME)
