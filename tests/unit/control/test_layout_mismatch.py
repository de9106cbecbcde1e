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


def test_workers_of_one_dtype_are_alike(infos_by_dtype: dict[str, WorkerInfo]) -> None:
    for info in infos_by_dtype.values():
        assert layout_mismatch([info, decode_of(info)]) is None
    assert layout_mismatch([]) is None


def test_unlike_dtypes_are_named_with_their_workers_and_the_remedy(
    infos_by_dtype: dict[str, WorkerInfo],
) -> None:
    plain, small = infos_by_dtype["float32"], infos_by_dtype["bfloat16"]
    text = layout_mismatch([plain, decode_of(small), decode_of(small, WorkerId("d1"))])
    assert text == (
        "KV blocks cannot move between unlike workers: "
        "pool prefill on node group laptop has dtype float32, KV layout "
        f"{plain.layout_digest[:8]} (workers: p); "
        "pool decode on node group server has dtype bfloat16, KV layout "
        f"{small.layout_digest[:8]} (workers: d, d1). "
        "dtype: auto takes what suits each machine: set one for all of them at the top of the "
        "config, dtype: bfloat16 or dtype: float32"
    )


def test_unlike_models_of_one_dtype_are_told_apart_from_it() -> None:
    text = layout_mismatch(
        [
            make_info(P, Role.PREFILL, layout_digest="one"),
            make_info(D, Role.DECODE, layout_digest="other"),
        ]
    )
    assert text is not None
    assert "config.json" in text
    assert "dtype: auto" not in text


def test_the_control_plane_says_so_until_the_odd_worker_has_left() -> None:
    config = ControlConfig(max_queued_requests=8, queue_timeout_s=60.0)
    control = ControlPlane(config, LeastLoaded())
    control.worker_joined(make_info(P, Role.PREFILL, dtype="float32", layout_digest="a"), 0.0)
    assert control.layout_mismatch() is None
    control.worker_joined(make_info(D, Role.DECODE, dtype="bfloat16", layout_digest="b"), 0.0)
    mismatch = control.layout_mismatch()
    assert mismatch is not None
    assert "bfloat16" in mismatch
    assert control.place("f", [make_ask()], 0.0), "it queues"
    control.worker_left(D, 1.0)
    assert control.layout_mismatch() is None
