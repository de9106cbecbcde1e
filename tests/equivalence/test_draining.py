"""Workers that drain under running requests: they are empty long before those would have ended, and
no client sees anything of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.core.request import Request
from pdray.local import LocalCluster
from tests.equivalence.migration import answer_of, config_with, running
from tests.equivalence.test_migration import LETTERS, SAMPLING, assert_equal
from tests.local_cluster import num_placed_again, random_prompts, request_of
from tests.worker_peer import until

NUM_TOKENS = 300
LENGTHS = [1, 40, 60, 100, 64, 33]
LONG_S = 60.0


def requests_of(prefix: str) -> list[Request]:
    requests = []
    for i, (prompt, more) in enumerate(
        zip(random_prompts(LENGTHS), [*SAMPLING, LETTERS], strict=True)
    ):
        request = request_of(prompt, NUM_TOKENS, request_id=f"{prefix}{i}", cache_salt=prefix)
        requests.append(replace(request, sampling=replace(request.sampling, **more)))
    return requests


async def all_decode(cluster: LocalCluster, requests: list[Request]) -> None:
    lives = cluster.frontend._live
    await until(lambda: all(r.request_id in lives for r in requests))
    await until(lambda: all(live.decoder_id is not None for live in lives.values()))


@pytest.mark.slow
async def test_decodes_leave_a_worker_that_drains_and_say_the_same(tiny_model_path: Path) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2, transport="nixl", max_batch_size=16)
    async with running(config, tiny_model_path) as cluster:
        calm = await asyncio.gather(*(answer_of(cluster, each) for each in requests_of("calm")))
        requests = requests_of("r")
        answering = [asyncio.create_task(answer_of(cluster, each)) for each in requests]
        await all_decode(cluster, requests)
        leaver, other = cluster.workers_of("decode")
        assert len(cluster.frontend.decoding_at(leaver.config.worker_id)) >= 2
        assert await leaver.drain(LONG_S)
        assert not all(each.done() for each in answering), "it waited for its decodes to end"
        assert leaver.snapshot().num_running == 0
        await leaver.stop()
        for answer, expected in zip(await asyncio.gather(*answering), calm, strict=True):
            assert_equal(answer, expected)
        assert num_placed_again(cluster.frontend) == 0
        assert other.snapshot().num_running == 0
        cluster.workers.remove(leaver)
