"""Workers that are told to go under running streams: by SIGTERM, and with their node."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pdray.cluster.launch import up
from pdray.cluster.messages import ControllerStatus
from pdray.cluster.names import worker_name
from pdray.core.request import WorkerId
from tests.cluster.conftest import (
    ClusterFrontend,
    MakeConfig,
    config_of,
    processes_of,
    until_ended,
)
from tests.local_cluster import num_migrated, num_placed_again
from tests.served import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_TOKENS = 900
CONTROLLER = {"placement": "least_loaded", "worker_lease_s": 30.0, "unused_exit_s": 10.0}
ENGINE = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}


def pool_of(role: str, **more: object) -> dict[str, object]:
    return {"role": role, "node_groups": ["laptop"], "engine": ENGINE} | more


async def test_sigterm_moves_the_decodes_and_brings_the_next_worker(
    make_config: MakeConfig,
) -> None:
    pools = {"prefill": pool_of("prefill"), "decode": pool_of("decode", replicas=2)}
    config = make_config(pools=pools, controller=CONTROLLER)
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await frontend.generate("undisturbed", max_tokens=NUM_TOKENS)
        before = await frontend.client.status()
        worker_ids = {(w.pool, w.index): w.worker_id for w in before.workers}
        answering = [
            asyncio.create_task(frontend.generate(f"{i}", max_tokens=NUM_TOKENS)) for i in range(4)
        ]
        leaver = await until_one_decodes(frontend, worker_ids)
        process = processes_of("app")[worker_name("app", config.generation, "decode", leaver)]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.gather(*answering) == [expected] * 4
        assert num_placed_again(frontend.frontend) == 0
        assert num_migrated(frontend.frontend) > 0
        await until_ended([process])
        left_id, stayer_id = (worker_ids["decode", index] for index in (leaver, 1 - leaver))

        def decoders(status: ControllerStatus) -> set[WorkerId | None]:
            return {w.worker_id for w in status.workers if w.pool == "decode"}

        # In its place, or in another where the controller has heard of its end before.
        after = await frontend.until(lambda s: s.is_ready and left_id not in decoders(s))
        assert len(decoders(after)) == 2
        assert stayer_id in decoders(after)
        assert await frontend.generate("after", max_tokens=NUM_TOKENS) == expected


async def test_a_node_that_ray_drains_is_left_by_its_streams_and_its_worker(
    tiny_model_path: Path,
) -> None:
    folder = f"/tmp/pdray-node-{os.getpid()}"  # sockets in it: the path must be short
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.cluster.test_draining", folder, str(tiny_model_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the worker has left" in done.stdout
    assert "the node has ended" in done.stdout


async def drain_a_node(leaver_node_id: str, address: str, model_path: Path) -> None:
    """In a process of its own, as only one Ray is known to each."""
    config = config_of(
        model_path,
        "nodes",
        node_groups={"laptop": {"resource": "steady"}, "lent": {"resource": "lent"}},
        controller=CONTROLLER,
        pools={
            "prefill": pool_of("prefill"),
            "decode": pool_of("decode"),
            "spot": pool_of("decode", node_groups=["lent", "laptop"]),
        },
    )
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        expected = await frontend.generate("undisturbed", max_tokens=NUM_TOKENS)
        (leaver_id,) = (
            w.worker_id for w in (await frontend.client.status()).workers if w.pool == "spot"
        )
        assert leaver_id is not None
        is_gone = asyncio.create_task(until_it_has_left(frontend, leaver_id))
        num_streams, has_been_told = 0, False
        while not is_gone.done():
            streams = [
                frontend.generate(f"{num_streams + i}", max_tokens=NUM_TOKENS) for i in range(4)
            ]
            num_streams += len(streams)
            answering = [asyncio.ensure_future(each) for each in streams]
            if not has_been_told and await it_decodes_one_of(frontend, leaver_id, answering):
                has_been_told = True
                await asyncio.to_thread(drain_node, leaver_node_id, address)
            assert await asyncio.gather(*answering) == [expected] * len(streams)
        assert num_placed_again(frontend.frontend) == 0
        assert num_migrated(frontend.frontend) > 0
        print(f"the worker has left after {num_streams} streams")
    await until_the_node_has_ended(leaver_node_id)
    print("the node has ended")


async def until_one_decodes(
    frontend: ClusterFrontend, worker_ids: dict[tuple[str, int], WorkerId | None]
) -> int:
    """The index of a decode worker that has something to leave behind."""
    async with asyncio.timeout(20):
        while True:
            for (pool, index), worker_id in worker_ids.items():
                if pool == "decode" and worker_id and frontend.frontend.decoding_at(worker_id):
                    return index
            await asyncio.sleep(0.001)


async def it_decodes_one_of(
    frontend: ClusterFrontend, worker_id: WorkerId, answering: list[asyncio.Future[list[int]]]
) -> bool:
    """False where all have ended without it."""
    while not all(each.done() for each in answering):
        if frontend.frontend.decoding_at(worker_id):
            return True
        await asyncio.sleep(0.001)
    return False


async def until_it_has_left(frontend: ClusterFrontend, worker_id: WorkerId) -> None:
    await frontend.until(lambda s: worker_id not in {each.worker_id for each in s.workers})


async def until_the_node_has_ended(node_id: str) -> None:
    """Ray ends a node that drains once nothing runs there."""
    import ray

    async with asyncio.timeout(30):
        while any(each["Alive"] for each in ray.nodes() if each["NodeID"] == node_id):
            await asyncio.sleep(0.2)


def drain_node(node_id: str, address: str) -> None:
    """What a cloud's notice becomes."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
            *("--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "bought back", "--deadline-remaining-seconds", "60"),
        ],
        check=True,
    )


def main(folder: str, model_path: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    small = {"object_store_memory": 80 * 2**20}
    cluster.add_node(
        num_cpus=4, resources={"steady": 4}, include_dashboard=False, temp_dir=folder, **small
    )
    lent = cluster.add_node(num_cpus=2, resources={"lent": 1}, temp_dir=folder, **small)
    ray.init(cluster.address, log_to_driver=False)
    try:
        asyncio.run(drain_a_node(lent.node_id, cluster.address, Path(model_path)))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
