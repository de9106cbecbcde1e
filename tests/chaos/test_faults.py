"""A thousand requests, with aborts at every phase, while workers die, hang and are cut off.

What must hold at all times: no block is held by nobody. At the end: no request waits for ever,
all blocks of all living workers are free again, and every complete answer is the right one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.cluster import LEASE_S, Load, ProcessCluster, worker_config
from tests.equivalence.reference import Reference
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.slow

MakeWorker = Callable[[str, str], WorkerProcess]
SETTLE_S = 60.0
"""Leases, quarantines and links to dead peers end by then."""


@pytest.fixture
def make_worker(tiny_model_path: Path, tmp_path: Path) -> Iterator[MakeWorker]:
    with ExitStack() as stack:

        def make(name: str, role: str) -> WorkerProcess:
            config = worker_config(tiny_model_path, name, role)
            worker = WorkerProcess(config, tmp_path / f"{name}.log")
            stack.callback(worker.close)
            return worker

        yield make


@pytest.fixture(scope="module")
def reference(tiny_model_path: Path) -> Reference:
    return Reference(tiny_model_path)


async def test_a_thousand_requests_with_aborts_kills_and_hangs(
    make_worker: MakeWorker, reference: Reference
) -> None:
    workers = [make_worker(f"prefill-{i}", "prefill") for i in range(2)]
    workers += [make_worker(f"decode-{i}", "decode") for i in range(2)]
    spares = [make_worker("decode-2", "decode"), make_worker("prefill-2", "prefill")]
    load = Load(reference)
    async with ProcessCluster(workers) as cluster:
        await load.run(cluster, 300)
        assert load.counts.keys() <= {"complete", "given up", "refused"}, "nothing has failed yet"
        await cluster.until_idle(SETTLE_S)

        running = asyncio.create_task(load.run(cluster, 300))
        await load.until_made(350)
        workers[3].kill()
        await load.until_made(450)
        await cluster.add(spares[0])
        workers[1].kill()
        await cluster.add(spares[1])
        await running
        await cluster.until_idle(SETTLE_S)

        for num_made, hanging in ((650, workers[2]), (850, workers[0])):
            running = asyncio.create_task(load.run(cluster, 200))
            await load.until_made(num_made)
            hanging.send_signal(signal.SIGSTOP)
            await asyncio.sleep(2 * LEASE_S)
            hanging.send_signal(signal.SIGCONT)
            await running
            await cluster.until_idle(SETTLE_S)
    print(load.counts)
    assert load.num_made == 1000
    assert load.counts["complete"] > 500
