"""A changed config takes the place of the one before it."""

from __future__ import annotations

import asyncio

import pytest

from pdray.cluster.launch import up
from pdray.cluster.names import controller_name, living_actors, worker_name
from tests.cluster.conftest import NUM_CPUS, ClusterFrontend, MakeConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def test_a_new_generation_gets_the_room_of_the_old_which_finishes_its_requests(
    make_config: MakeConfig,
) -> None:
    # Each worker takes half of the machine: two generations cannot stand side by side.
    groups = {"laptop": {"resources_per_worker": {"CPU": NUM_CPUS / 2}}}
    old = make_config(node_groups=groups)
    new = make_config(node_groups=groups, dtype="bfloat16")
    assert old.generation != new.generation
    await asyncio.to_thread(up, old)
    async with ClusterFrontend(old) as frontend:
        expected = await frontend.generate("undisturbed", max_tokens=400)
        stream = frontend.stream("disturbed", max_tokens=400)
        tokens = [await anext(stream)]
        taking_over = asyncio.create_task(asyncio.to_thread(up, new))
        tokens += [token async for token in stream]
        assert tokens == expected
        await taking_over
    generation = new.generation
    while len(await living_actors("app")) > 3:
        await asyncio.sleep(0.1)
    assert await living_actors("app") == [
        controller_name("app", generation),
        worker_name("app", generation, "decode", 0),
        worker_name("app", generation, "prefill", 0),
    ]
    async with ClusterFrontend(new) as frontend:
        assert len(await frontend.generate("new")) == 16
