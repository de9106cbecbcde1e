"""Workers that cannot read each other's blocks are named, with what tells them apart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.control.controller import ControlConfig, ControlPlane
from pdray.control.layout_mismatch import layout_mismatch
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo
from pdray.engine.engine import Engine
from pdray.engine.model import load_model
from pdray.policy.placement.least_loaded import LeastLoaded
from pdray.worker.config import WorkerConfig
from pdray.worker.worker import Worker
from tests.engine_driver import engine_config
from tests.fleet_factories import make_ask, make_info

P, D = WorkerId("p"), WorkerId("d")


@pytest.fixture(scope="module")
def infos_by_dtype(tiny_model_path: Path) -> dict[str, WorkerInfo]:
    """What real workers of one model in two dtypes say of themselves."""
    dtypes = ("float32", "bfloat16")
    return {dtype: asyncio.run(info_of(tiny_model_path, dtype)) for dtype in dtypes}


async def info_of(model_path: Path, dtype: str) -> WorkerInfo:
    engine = engine_config(dtype=dtype)
    config = WorkerConfig(
        worker_id=P,
        pool="prefill",
        node_group="laptop",
        role=Role.PREFILL,
        host="127.0.0.1",
        model_path=model_path,
        engine=engine,
        transport="loopback",
        lease_s=30.0,
    )
    loaded = load_model(model_path, dtype=dtype, device="cpu")
    worker = Worker(config, Engine(loaded, engine))
    try:
        return await worker.start()
    finally:
        await worker.stop()


def decode_of(info: WorkerInfo, worker_id: WorkerId = D) -> WorkerInfo:
    return replace(info, worker_id=worker_id, pool="decode", node_group="server", role=Role.DECODE)


def test_workers_of_one_model_can_move_blocks_whatever_their_dtype(
    infos_by_dtype: dict[str, WorkerInfo],
) -> None:
    plain, small = infos_by_dtype["float32"], infos_by_dtype["bfloat16"]
    assert layout_mismatch([plain, decode_of(plain), decode_of(small, WorkerId("d1"))]) is None
    assert layout_mismatch([]) is None


def test_unlike_models_are_named_with_their_workers_and_whole_layouts() -> None:
    one = make_info(P, Role.PREFILL, layout_digest="one")
    other = make_info(D, Role.DECODE, layout_digest="other")
    text = layout_mismatch([one, other, replace(other, worker_id=WorkerId("d1"))])
    assert text == (
        "KV blocks cannot move between unlike workers: "
        f"pool {one.pool} on node group {one.node_group} has layout one (workers: p); "
        f"pool {other.pool} on node group {other.node_group} has layout other (workers: d, d1). "
        "The model, its config.json, or the version of transformers is not the same on these "
        "machines"
    )


def test_the_control_plane_says_so_until_the_odd_worker_has_left() -> None:
    config = ControlConfig(max_queued_requests=8, queue_timeout_s=60.0)
    control = ControlPlane(config, LeastLoaded())
    control.worker_joined(make_info(P, Role.PREFILL, dtype="float32", layout_digest="a"), 0.0)
    assert control.layout_mismatch() is None
    control.worker_joined(make_info(D, Role.DECODE, dtype="bfloat16", layout_digest="b"), 0.0)
    mismatch = control.layout_mismatch()
    assert mismatch is not None
    assert "layout b" in mismatch
    assert control.place("f", [make_ask()], 0.0), "it queues"
    control.worker_left(D, 1.0)
    assert control.layout_mismatch() is None
