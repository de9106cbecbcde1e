"""The application under Ray Serve: deployed again, and deleted by somebody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import serve

from pdray.cluster.names import controller_name, living_actors
from pdray.config import PdrayConfig
from pdray.serve.app import build_app
from pdray.serve.free_port import free_port
from tests.cluster.conftest import config_of, processes_of, until_ended, until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NAME = "under-serve"


@pytest.fixture(scope="module")
def serve_runs(local_ray: None) -> Iterator[None]:
    serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    yield
    serve.shutdown()


def deploy(config: PdrayConfig) -> None:
    application = build_app({"config": config.model_dump(mode="json")})
    serve.run(application, name=NAME, route_prefix="/under-serve")


def config_with(model_path: Path, **changes: object) -> PdrayConfig:
    controller = {"worker_lease_s": 30.0, "unused_exit_s": 4.0}
    return config_of(model_path, NAME, controller=controller, **changes)


async def test_deployed_again_and_deleted_by_another_process_it_leaves_no_process(
    serve_runs: None, tiny_model_path: Path
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
