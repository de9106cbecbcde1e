"""A decode worker on another host, whose cable is pulled under load and put back."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.cluster import Load, ProcessCluster, worker_config
from tests.equivalence.reference import Reference
from tests.namespace import namespace
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.slow

CUT_S = 25.0
"""A link that delivers nothing is given up after 15 s."""
SETTLE_S = 60.0


async def test_a_worker_that_is_cut_off_comes_back_and_nothing_is_lost(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    with namespace("pdraycut") as other, ExitStack() as stack:

        def make(name: str, role: str, *, is_far: bool) -> WorkerProcess:
            host = other.far_address if is_far else other.near_address
            device = other.far if is_far else other.near
            worker = WorkerProcess(
                worker_config(tiny_model_path, name, role, host),
                tmp_path / f"{name}.log",
                command=other.command if is_far else (),
                env={"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": device},
            )
            stack.callback(worker.close)
            return worker

        workers = [
            make("prefill-0", "prefill", is_far=False),
            make("decode-0", "decode", is_far=False),
            make("decode-far", "decode", is_far=True),
        ]
        far = workers[2].config.worker_id
        load = Load(Reference(tiny_model_path))
        async with ProcessCluster(workers) as cluster:
            await load.run(cluster, 60)
            assert load.counts.keys() <= {"complete", "given up", "refused"}
            running = asyncio.create_task(load.run(cluster, 200))
            await load.until_made(100)
            other.cut()
            cluster.unheard.add(far)
            await asyncio.sleep(CUT_S)
            other.join()
            await running
            await cluster.until_idle(SETTLE_S)
            cluster.unheard.discard(far)
            await asyncio.sleep(0.5)
            load.counts.clear()
            await load.run(cluster, 60)
            assert load.counts.keys() <= {"complete", "given up", "refused"}, load.counts
            await cluster.until_idle(SETTLE_S)
