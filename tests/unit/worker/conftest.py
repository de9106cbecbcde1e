"""A real worker with a tiny model, whose clock the test moves and whose peers it plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pdray.core.clock import ManualClock
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerState
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from pdray.transfer.base import KVRegion
from pdray.transfer.epochs import Epochs
from pdray.transfer.loopback import LoopbackTransport
from pdray.transfer.worker_description import WorkerDescription
from pdray.worker import worker as worker_module
from pdray.worker.config import WorkerConfig
from pdray.worker.lending import QUARANTINE_SHARE
from pdray.worker.worker import Worker
from tests.engine_driver import engine_config
from tests.worker_peer import Peer

LEASE_S = 30.0
QUARANTINE_S = LEASE_S * QUARANTINE_SHARE


@pytest.fixture(scope="session")
def loaded(tiny_model_path: Path) -> LoadedModel:
    return load_model(tiny_model_path, dtype="float32", device="cpu")


@dataclass(slots=True, eq=False)
class Scene:
    """``frontend`` has dialled the worker; ``other`` is a worker of the other pool."""

    worker: Worker
    clock: ManualClock
    frontend: Peer
    other: Peer
    epochs: Epochs
    """Those of ``other``'s leases."""
    may_crash: bool = False

    def is_empty(self) -> bool:
        pool = self.worker.engine.pool
        pool.check_integrity()
        assert self.worker.snapshot().num_unaccounted_blocks == 0
        return pool.num_available_blocks == pool.num_blocks

    @property
    def num_quarantined(self) -> int:
        return self.worker.snapshot().num_quarantined_blocks


def make_worker(
    loaded: LoadedModel, clock: ManualClock, model_path: Path, *, runs_ahead: bool
) -> Worker:
    """16 blocks of 16 tokens."""
    probe = Engine(loaded, engine_config())
    engine = engine_config(kv_cache_bytes=16 * probe.layout.block_bytes, max_batch_size=4)
    config = WorkerConfig(
        worker_id=WorkerId("w"),
        pool="pool",
        node_group="laptop",
        role=Role.MIXED,
        host="127.0.0.1",
        model_path=model_path,
        engine=engine,
        transport="loopback",
        lease_s=LEASE_S,
    )
    return Worker(config, Engine(loaded, engine, runs_ahead=runs_ahead), clock)


@pytest.fixture(params=[False, True], ids=["step by step", "a step ahead"])
async def scene(
    request: pytest.FixtureRequest,
    loaded: LoadedModel,
    manual_clock: ManualClock,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Scene]:
    monkeypatch.setattr(worker_module, "TICK_S", 0.01)
    worker = make_worker(loaded, manual_clock, tiny_model_path, runs_ahead=request.param)
    storage = worker.engine.storage
    memory = np.zeros(storage.num_blocks * storage.block_bytes, dtype=np.uint8)
    region = KVRegion(
        address=memory.ctypes.data,
        num_blocks=storage.num_blocks,
        block_bytes=storage.block_bytes,
        device_id=None,
    )
    transport = LoopbackTransport("other", region)
    other = Peer(
        "other",
        layout_digest=worker.engine.layout.content_digest,
        description=WorkerDescription(
            layout=worker.engine.layout,
            num_blocks=storage.num_blocks,
            ranks=(transport.describe(),),
        ).encode(),
    )
    frontend = Peer("frontend")
    info = await worker.start()
    await frontend.links.get(info.address)
    scene = Scene(worker, manual_clock, frontend, other, transport.epochs)
    yield scene
    assert scene.may_crash or worker.state is not WorkerState.FAILED
    await frontend.close()
    await other.close()
    await worker.stop()
    transport.close()
