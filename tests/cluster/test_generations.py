"""A changed config takes the place of the one before it."""

from __future__ import annotations

import asyncio

import pytest

from pdray.cluster.launch import up
from pdray.cluster.names import controller_name, is_controller, living_actors, worker_name
from pdray.config import PdrayConfig
from tests.cluster.conftest import (
    NUM_CPUS,
    ClusterFrontend,
    MakeConfig,
    kill,
    processes_of,
    until_ended,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Each worker takes half of the machine: two generations cannot stand side by side.
CROWDED = {"laptop": {"resources_per_worker": {"CPU": NUM_CPUS / 2}}}


def names_of(config: PdrayConfig) -> list[str]:
    generation = config.generation
    return [
        controller_name("app", generation),
        worker_name("app", generation, "decode", 0),
        worker_name("app", generation, "prefill", 0),
    ]


async def until_only(config: PdrayConfig) -> None:
    while await living_actors("app") != names_of(config):
        await asyncio.sleep(0.1)


async def test_a_new_generation_gets_the_room_of_the_old_and_gives_it_back(
    make_config: MakeConfig,
) -> None:
    old = make_config(node_groups=CROWDED)
    new = make_config(node_groups=CROWDED, dtype="bfloat16")
    assert old.generation != new.generation
    await asyncio.to_thread(up, old)
    old_processes = processes_of("app")
    async with ClusterFrontend(old) as frontend:  # its controller lives on, retired
        expected = await frontend.generate("undisturbed", max_tokens=400)
        stream = frontend.stream("disturbed", max_tokens=400)
        tokens = [await anext(stream)]
        taking_over = asyncio.create_task(asyncio.to_thread(up, new))
        tokens += [token async for token in stream]
        assert tokens == expected, "the old generation finishes its requests"
        await taking_over
        assert (await frontend.client.status()).is_retired
        await until_ended(
            [old_processes[name] for name in names_of(old) if not is_controller(name)]
        )
        async with ClusterFrontend(new) as other:
            assert len(await other.generate("new")) == 16
        await asyncio.to_thread(up, old)
        await until_only(old)
        assert await frontend.generate("after", max_tokens=400) == expected


async def test_an_old_controller_that_dies_stays_retired_and_goes_on_giving_room(
    make_config: MakeConfig,
) -> None:
    old = make_config(node_groups=CROWDED)
    new = make_config(node_groups=CROWDED, dtype="bfloat16")
    await asyncio.to_thread(up, old)
    old_processes = processes_of("app")
    async with ClusterFrontend(old) as frontend:
        taking_over = asyncio.create_task(asyncio.to_thread(up, new))
        # Its frontend remakes it at once, whether or not anybody has heard that it is retired.
        while controller_name("app", new.generation) not in await living_actors("app"):
            await asyncio.sleep(0.01)
        kill(controller_name("app", old.generation))
        await frontend.until(lambda status: status.is_retired)
        await taking_over
        assert (await frontend.client.status()).is_retired
    await until_only(new)
    await until_ended(old_processes.values())
