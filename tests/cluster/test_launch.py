"""Applications come up, say why they do not, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from pdray.cluster.launch import down, up
from pdray.cluster.messages import ControllerStatus
from pdray.cluster.names import controller_name, living_actors, worker_name
from pdray.core.errors import UnavailableError
from tests.cluster.conftest import (
    ClusterFrontend,
    MakeConfig,
    is_alive,
    kill,
    processes_of,
    until_ended,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


async def test_up_makes_every_actor_once_and_down_leaves_none(make_config: MakeConfig) -> None:
    config = make_config()
    lines: list[str] = []
    await asyncio.gather(asyncio.to_thread(up, config, lines.append), asyncio.to_thread(up, config))
    generation = config.generation
    assert await living_actors("app") == [
        controller_name("app", generation),
        worker_name("app", generation, "decode", 0),
        worker_name("app", generation, "prefill", 0),
    ]
    assert any("prefill worker 0" in line for line in lines)
    async with ClusterFrontend(config) as one, ClusterFrontend(config) as other:
        alone, together = await one.generate("a"), await other.generate("b")
        assert alone == together
        assert len(alone) == 16
    processes = processes_of("app")
    assert len(processes) == 3
    await asyncio.to_thread(down, config)
    assert await living_actors("app") == []
    await until_ended(processes.values())


async def test_two_applications_do_not_see_each_other(make_config: MakeConfig) -> None:
    one, other = make_config("one"), make_config("other")
    assert one.generation == other.generation, "or the names are apart for another reason"
    await asyncio.gather(asyncio.to_thread(up, one), asyncio.to_thread(up, other))
    async with ClusterFrontend(other) as frontend:
        before = await frontend.client.status()
        processes, others = processes_of("one"), processes_of("other")
        assert (len(processes), len(others)) == (3, 3)
        await asyncio.to_thread(down, one)
        assert await living_actors("one") == []
        await until_ended(processes.values())
        assert all(is_alive(process) for process in others.values())
        assert await frontend.generate("a")
        after = await frontend.client.status()
        assert worker_ids(after) == worker_ids(before)


async def test_a_model_that_cannot_be_served_is_the_reason_that_up_gives(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["T5ForConditionalGeneration"]}')
    config = make_config(model=str(tmp_path))
    with pytest.raises(UnavailableError, match=r"does not start: .*no weights"):
        await asyncio.to_thread(up, config)
    await asyncio.to_thread(down, config)
    assert await living_actors("app") == []


async def test_workers_of_unlike_models_are_named_at_once(
    make_config: MakeConfig, tiny_model_path: Path, tmp_path: Path
) -> None:
    """As where two machines have other files under one path: here they change in between."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_path, folder)
    config = make_config(model=str(folder))
    await asyncio.to_thread(up, config)
    facts = json.loads((folder / "config.json").read_text())
    facts["max_position_embeddings"] += 1
    (folder / "config.json").write_text(json.dumps(facts))
    kill(worker_name("app", config.generation, "decode", 0))
    async with ClusterFrontend(config) as frontend:
        await frontend.until(lambda status: not status.is_ready)
        with pytest.raises(UnavailableError, match="KV blocks cannot move") as caught:
            await asyncio.to_thread(up, config)
        status = await frontend.client.status()
    assert status.is_ready, "every worker lives, and yet it is no start"
    assert status.layout_mismatch == str(caught.value)
    for words in ("app-prefill-0-", "app-decode-0-", "node group laptop", "config.json"):
        assert words in str(caught.value)


async def test_a_worker_falls_to_the_next_node_group_where_the_first_has_no_room(
    make_config: MakeConfig,
) -> None:
    groups = {"big": {"resource": "no-such-machine"}, "laptop": {}}
    pools = make_config().model_dump(mode="json")["pools"]
    pools["decode"]["node_groups"] = ["big", "laptop"]
    config = make_config(node_groups=groups, pools=pools)
    await asyncio.to_thread(up, config)
    async with ClusterFrontend(config) as frontend:
        status = await frontend.client.status()
        assert {worker.node_group for worker in status.workers} == {"laptop"}


def worker_ids(status: ControllerStatus) -> list[str | None]:
    return [worker.worker_id for worker in status.workers]
