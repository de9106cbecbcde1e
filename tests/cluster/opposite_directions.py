"""An application on a cluster whose nodes come and go: prompts first, then long answers. Run by its
test as a process of its own, as its Ray is another one; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ray

from pdray.cluster.launch import down, in_use, up
from pdray.cluster.messages import ControllerStatus
from pdray.config import PdrayConfig
from pdray.core.snapshot import WorkerState
from tests.cluster.conftest import ClusterFrontend, config_of

POLICY = {
    "min_replicas": 1,
    "max_replicas": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 3.0,
    "metrics_interval_s": 0.25,
    "look_back_period_s": 2.0,
}


def make_config(model_path: Path) -> PdrayConfig:
    engine = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}
    return config_of(
        model_path,
        "cloud",
        node_groups={
            "fast": {"resource": "fast", "labels": {"kind": "fast"}},
            "large": {"resource": "large", "labels": {"kind": "large"}},
        },
        pools={
            "prefill": {
                "role": "prefill",
                "node_groups": ["fast"],
                "engine": engine,
                "autoscaling": POLICY | {"signals": {"request_rate": 3.0}},
            },
            "decode": {
                "role": "decode",
                "node_groups": ["large"],
                "engine": engine,
                "autoscaling": POLICY | {"signals": {"queue_length": 4.0}},
            },
        },
    )


def num_nodes() -> dict[str, int]:
    """Living raylets by node group."""
    kinds = Counter(
        kind
        for node in ray.nodes()
        if node["Alive"]
        for kind in ("fast", "large")
        if kind in node["Resources"]
    )
    return {kind: kinds[kind] for kind in ("fast", "large")}


def num_ready(status: ControllerStatus) -> dict[str, int]:
    ready = [worker for worker in status.workers if worker.state is WorkerState.READY]
    pools = Counter(worker.pool for worker in ready)
    return {pool: pools[pool] for pool in ("prefill", "decode")}


async def ask_until(
    frontend: ClusterFrontend,
    name: str,
    expected: list[int],
    pause_s: float,
    is_over: asyncio.Event,
) -> int:
    number = 0
    while not is_over.is_set():
        number += 1
        answer = await frontend.generate(f"{name}-{number}", max_tokens=len(expected))
        assert answer == expected, "a stream broke"
        await asyncio.sleep(pause_s)
    return number


async def under_load(
    frontend: ClusterFrontend,
    name: str,
    *,
    num_tokens: int,
    num_clients: int,
    pause_s: float,
    until: Callable[[ControllerStatus], bool],
) -> dict[str, object]:
    expected = await frontend.generate(f"{name}-calm", max_tokens=num_tokens)
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        clients = [
            tasks.create_task(ask_until(frontend, f"{name}-{index}", expected, pause_s, is_over))
            for index in range(num_clients)
        ]
        status = await frontend.until(until)
        is_over.set()
    return {
        "ready": num_ready(status),
        "nodes": num_nodes(),
        "num_answers": sum(client.result() for client in clients),
    }


async def run(config: PdrayConfig) -> dict[str, object]:
    seen: dict[str, object] = {"at first": num_nodes()}
    await asyncio.to_thread(up, config)
    with in_use(config):
        async with ClusterFrontend(config) as frontend:
            seen["prompts"] = await under_load(
                frontend,
                "prompts",
                num_tokens=1,
                num_clients=8,
                pause_s=0.5,
                until=lambda status: num_ready(status) == {"prefill": 2, "decode": 1},
            )
            seen["answers"] = await under_load(
                frontend,
                "answers",
                num_tokens=900,
                num_clients=8,
                pause_s=2.0,
                until=lambda status: num_ready(status) == {"prefill": 1, "decode": 2},
            )
            while num_nodes()["fast"] > 1:
                await asyncio.sleep(0.5)
            seen["after"] = num_nodes()
    return seen


if __name__ == "__main__":
    address, model_path = sys.argv[1:]
    ray.init(address, log_to_driver=False)
    config = make_config(Path(model_path))
    try:
        print(json.dumps(asyncio.run(run(config))))
    finally:
        down(config)
        ray.shutdown()
