"""Requests that are made to move while they decode: what the tests of migration share."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pdray.config import PdrayConfig
from pdray.core.errors import MigrationError
from pdray.core.request import FinishReason, Request
from pdray.frontend.token_stream import TokenDelta
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.local_cluster import config_of, until_idle


@dataclass(slots=True)
class Answer:
    """All that a client sees of a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_prompt_logprobs: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, delta: TokenDelta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += [each.logprob for each in delta.logprobs or ()]
        if delta.prompt_logprobs is not None:
            self.num_prompt_logprobs.append(len(delta.prompt_logprobs))
        self.finish_reason = delta.finish_reason


def config_with(
    model_path: Path, *, num_decode_workers: int, transport: str = "loopback", **engine: object
) -> PdrayConfig:
    config = config_of(model_path, transfer={"transport": transport}, prefill=engine, decode=engine)
    decode = config.pools["decode"].model_copy(update={"replicas": num_decode_workers})
    return config.model_copy(update={"pools": config.pools | {"decode": decode}})


@asynccontextmanager
async def running(config: PdrayConfig, model_path: Path) -> AsyncIterator[LocalCluster]:
    """At its end nothing may be left of any request, on any worker."""
    async with LocalCluster(config, model_path) as cluster:
        yield cluster
        await until_idle(cluster)
        assert cluster.frontend.num_in_flight == 0
        for worker in cluster.workers:
            assert worker._migrating.num_active == 0
            assert worker.engine.num_unaccounted_blocks == 0


async def answer_of(cluster: LocalCluster, request: Request) -> Answer:
    answer = Answer()
    async for delta in cluster.frontend.generate(request):
        answer.take(delta)
    return answer


def decoder_of(cluster: LocalCluster, request_id: str) -> Worker | None:
    for worker in cluster.workers:
        if request_id in cluster.frontend.decoding_at(worker.config.worker_id):
            return worker
    return None


async def move_once(cluster: LocalCluster, request_id: str, rng: random.Random) -> bool:
    """To any other decode worker; False where it did not move."""
    source = decoder_of(cluster, request_id)
    if source is None:
        return False
    target = rng.choice([each for each in cluster.workers_of("decode") if each is not source])
    try:
        await cluster.frontend.migrate(request_id, target.info().address)
    except MigrationError:
        return False
    return True


async def answer_on_the_move(
    cluster: LocalCluster, request: Request, rng: random.Random
) -> tuple[Answer, int]:
    """Moved as often as it can be, and how often that was."""
    answering = asyncio.create_task(answer_of(cluster, request))
    num_moves = 0
    while not answering.done():
        num_moves += await move_once(cluster, request.request_id, rng)
        await asyncio.sleep(rng.uniform(0.0, 0.02))
    return await answering, num_moves
