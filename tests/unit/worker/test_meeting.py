from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.core.request import WorkerId
from pdray.core.snapshot import Role
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel
from pdray.link.messages import Meet, Met
from pdray.worker import meeting
from pdray.worker.config import WorkerConfig
from pdray.worker.worker import Worker
from tests.engine_driver import engine_config
from tests.worker_peer import Peer


def make_worker(loaded: LoadedModel, model_path: Path, name: str, block_size: int = 16) -> Worker:
    engine = engine_config(block_size=block_size)
    config = WorkerConfig(
        worker_id=WorkerId(name),
        pool="pool",
        node_group="laptop",
        role=Role.MIXED,
        host="127.0.0.1",
        model_path=model_path,
        engine=engine,
        transport="nixl",
        lease_s=30.0,
    )
    return Worker(config, Engine(loaded, engine))


@pytest.fixture
async def pair(loaded: LoadedModel, tiny_model_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    workers = tuple(make_worker(loaded, tiny_model_path, name) for name in ("a", "b"))
    for worker in workers:
        await worker.start()
    yield workers[0], workers[1]
    for worker in workers:
        await worker.stop()


def is_lending(worker: Worker) -> bool:
    return worker._transfer._num_lending > 0


async def test_after_a_meeting_both_can_read_the_other(pair: tuple[Worker, Worker]) -> None:
    one, other = pair
    assert await one.meet([other.info().address]) == {}
    while is_lending(other):
        await asyncio.sleep(0.01)
    assert not is_lending(one)
    for reader, owner in ((one, other), (other, one)):
        owner._transfer.begin_lending()
        scratch = reader.engine.storage.scratch_block_id
        reading = reader._transfer.pull(owner.config.worker_id, [0], [scratch])
        assert (await asyncio.wrap_future(reading)).num_blocks == 1
        owner._transfer.end_lending()
        assert reader.engine.pool.num_available_blocks == reader.engine.pool.num_blocks


async def test_pairs_may_meet_again_and_both_ways_at_once(pair: tuple[Worker, Worker]) -> None:
    one, other = pair
    for _ in range(2):
        answers = await asyncio.gather(
            one.meet([other.info().address]), other.meet([one.info().address])
        )
        assert answers == [{}, {}]


async def test_layouts_that_can_be_converted_meet(
    loaded: LoadedModel, tiny_model_path: Path, pair: tuple[Worker, Worker]
) -> None:
    large = make_worker(loaded, tiny_model_path, "large", block_size=32)
    await large.start()
    assert await large.meet([worker.info().address for worker in pair]) == {}
    assert await pair[0].meet([large.info().address]) == {}
    await large.stop()


async def test_layouts_that_cannot_be_converted_are_named_before_any_request(
    loaded: LoadedModel, tiny_model_path: Path, pair: tuple[Worker, Worker]
) -> None:
    odd = make_worker(replace(loaded, digest="odd model"), tiny_model_path, "odd", block_size=32)
    await odd.start()
    failures = await odd.meet([worker.info().address for worker in pair])
    assert failures.keys() == {"a", "b"}
    assert "block of 16 tokens" in failures[WorkerId("a")]
    assert "block of 32 tokens" in failures[WorkerId("a")]
    assert "odd model" in failures[WorkerId("a")]
    await odd.stop()


async def test_a_worker_that_is_not_there_fails_its_meeting_alone(
    pair: tuple[Worker, Worker],
) -> None:
    one, other = pair
    gone = Peer("gone")
    address = await gone.listen()
    await gone.close()
    failures = await one.meet([address, other.info().address])
    assert failures.keys() == {"gone"}
    assert "no link to worker gone" in failures[WorkerId("gone")]


async def test_a_silent_peer_and_a_lost_one_end_a_meeting(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    digest = one.engine.layout.content_digest
    silent = Peer("silent", layout_digest=digest, description=one._transfer.describe())
    address = await silent.listen()
    monkeypatch.setattr(meeting, "TIMEOUT_S", 0.2)
    assert (await one.meet([address]))[WorkerId("silent")] == "no word of silent within 0.2 s"
    await silent.receive(Meet)
    assert (await silent.receive(Met))[1].failure == "no word of silent within 0.2 s"
    monkeypatch.setattr(meeting, "TIMEOUT_S", 30.0)
    meeting_again = asyncio.create_task(one.meet([address]))
    await silent.receive(Meet)
    await silent.close()
    assert "was lost" in (await meeting_again)[WorkerId("silent")]
    assert not is_lending(one)
