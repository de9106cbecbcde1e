"""What a frontend hears from its controller, whichever life that is in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pdray.cluster.launch import down, up
from pdray.cluster.names import controller_name
from pdray.config import PdrayConfig
from pdray.core.placement import Placement, PlacementAsk, Queued, Refusal
from tests.cluster.conftest import ClusterFrontend, config_of, kill

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(local_ray: None, tiny_model_path: Path) -> Iterator[PdrayConfig]:
    """A running application where two requests may be in flight, and two may queue."""
    engine = {"kv_cache_bytes": "4MiB", "num_threads": 1, "max_model_len": 1024}
    engine |= {"max_batch_size": 1}
    pool = {"node_groups": ["laptop"], "engine": engine}
    config = config_of(
        tiny_model_path,
        "client",
        pools={"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}},
        controller={"max_queued_requests": 2, "unused_exit_s": 10.0},
    )
    up(config)
    yield config
    down(config)


def asks(*request_ids: str) -> list[PlacementAsk]:
    return [PlacementAsk(request_id=r, num_prompt_tokens=10, max_tokens=10) for r in request_ids]


def kinds(answers: Sequence[object]) -> list[type]:
    return [type(answer) for answer in answers]


async def test_the_queue_is_bounded_kept_in_order_and_outlives_its_controller(
    config: PdrayConfig,
) -> None:
    async with ClusterFrontend(config) as frontend:
        client = frontend.client
        answers = await client.place(asks("a", "b", "c", "d", "e"))
        assert kinds(answers) == [Placement, Placement, Queued, Queued, Refusal]
        waits = [asyncio.create_task(client.wait(request_id)) for request_id in ("c", "d")]

        kill(controller_name("client", config.generation))
        await frontend.until(lambda s: s.is_ready and (s.num_in_flight, s.num_queued) == (2, 2))
        assert not any(wait.done() for wait in waits)

        client.finished(["a"])
        first = await waits[0]
        assert isinstance(first, Placement)
        assert first.request_id == "c"
        client.finished(["d"])
        given_up = await waits[1]
        assert isinstance(given_up, Refusal)
        client.finished(["b", "c"])
        await frontend.until(lambda s: (s.num_in_flight, s.num_queued) == (0, 0))


async def test_asks_of_one_moment_and_their_end_leave_in_order(config: PdrayConfig) -> None:
    async with ClusterFrontend(config) as frontend:
        client = frontend.client
        for _ in range(20):
            both = asyncio.gather(client.place(asks("a")), client.place(asks("b")))
            assert kinds([answer for (answer,) in await both]) == [Placement, Placement]
            client.finished(["a", "b"])
        never_sent = asyncio.create_task(client.place(asks("c")))
        await asyncio.sleep(0)
        client.finished(["c"])
        with pytest.raises(asyncio.CancelledError):
            await never_sent
        await frontend.until(lambda s: s.num_in_flight == 0)


async def test_a_frontend_that_closes_takes_its_requests_with_it(config: PdrayConfig) -> None:
    async with ClusterFrontend(config) as watcher:
        async with ClusterFrontend(config) as frontend:
            await frontend.client.place(asks("a", "b", "c"))
            await watcher.until(lambda s: (s.num_in_flight, s.num_queued) == (2, 1))
        status = await watcher.until(lambda s: (s.num_in_flight, s.num_queued) == (0, 0))
        assert status.frontend_ids == (watcher.frontend.frontend_id,)
