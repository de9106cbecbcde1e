"""A real local Ray, and applications on it that serve a tiny model."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private.state import actors

from pdray.cluster.client import RayControllerClient
from pdray.cluster.launch import down
from pdray.cluster.messages import ControllerStatus
from pdray.cluster.names import NAMESPACE, application_prefix, living_actors
from pdray.config import PdrayConfig, parse_config
from pdray.core.request import Request, SamplingParams
from pdray.frontend.frontend import Frontend

NUM_CPUS = 4
"""Room for two applications of one prefill and one decode worker."""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="pdray-test-")  # sockets in it: the path must be short
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


MakeConfig = Callable[..., PdrayConfig]


@pytest.fixture
def make_config(local_ray: None, tiny_model_path: Path) -> Iterator[MakeConfig]:
    """Configs of applications that are taken down after the test, whatever it did to them."""
    made: dict[str, PdrayConfig] = {}

    def make(application: str = "app", **changes: object) -> PdrayConfig:
        made[application] = config_of(tiny_model_path, application, **changes)
        return made[application]

    yield make
    for config in made.values():
        down(config)


def config_of(model_path: Path, application: str, **changes: object) -> PdrayConfig:
    """One prefill and one decode worker, with ``changes`` of whole sections."""
    engine = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}
    pool = {"node_groups": ["laptop"], "engine": engine}
    data: dict[str, object] = {
        "model": str(model_path),
        "node_groups": {"laptop": {}},
        "pools": {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}},
        "controller": {
            "placement": "least_loaded",  # with cost, short prompts would not move
            "worker_lease_s": 10.0,
            "unused_exit_s": 10.0,
        },
        "serve": {"application": application},
    }
    return parse_config(data | changes)


class ClusterFrontend:
    """A frontend and its client, as an ingress replica has them."""

    _numbers = itertools.count()

    def __init__(self, config: PdrayConfig) -> None:
        frontend_id = f"frontend-{next(self._numbers)}"
        self.client = RayControllerClient(config, frontend_id)
        self.frontend = Frontend(frontend_id, self.client, max_unread_tokens=4096)

    async def __aenter__(self) -> ClusterFrontend:
        await self.client.start(self.frontend.metrics)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.frontend.stop()
        await self.client.close()

    async def until(self, is_so: Callable[[ControllerStatus], bool]) -> ControllerStatus:
        """Waits for as long as the test may take."""
        while not is_so(status := await self.client.status()):
            await asyncio.sleep(0.1)
        return status

    async def stream(self, request_id: str, *, max_tokens: int = 16) -> AsyncIterator[int]:
        """Greedy tokens, one by one; the same for every request."""
        async for delta in self.frontend.generate(greedy(request_id, max_tokens)):
            for token_id in delta.token_ids:
                yield token_id

    async def generate(self, request_id: str, *, max_tokens: int = 16) -> list[int]:
        return [token_id async for token_id in self.stream(request_id, max_tokens=max_tokens)]


def greedy(request_id: str, max_tokens: int) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(range(1, 51)),
        output_token_ids=(),
        sampling=SamplingParams(
            max_tokens=max_tokens,
            temperature=0.0,
            top_k=None,
            top_p=1.0,
            seed=0,
            stop_token_ids=(),
            ignore_eos=True,
        ),
        cache_salt=None,
    )


def kill(name: str) -> None:
    """The actor's process dies at once, with no chance to clean up."""
    ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def processes_of(application: str) -> dict[str, psutil.Process]:
    """The operating system's processes of an application's living actors, by actor name."""
    prefix = application_prefix(application)
    return {
        actor["Name"]: psutil.Process(actor["Pid"])
        for actor in actors().values()
        if actor["Name"].startswith(prefix) and actor["State"] == "ALIVE"
    }


async def until_ended(processes: Iterable[psutil.Process]) -> None:
    """The test's own time limit is the limit."""
    while any(is_alive(process) for process in processes):
        await asyncio.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_gone(application: str) -> None:
    """No actor of it is known to Ray, and none of the processes there were is left."""
    processes = processes_of(application)
    while await living_actors(application):
        await asyncio.sleep(0.1)
    await until_ended(processes.values())
