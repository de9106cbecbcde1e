"""What was evicted comes back from the tiers below, in real workers: tokens equal transformers',
and nothing is computed that is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pdray.config import PdrayConfig
from pdray.core.request import Request
from pdray.engine.engine import Engine
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.engine_driver import engine_config
from tests.equivalence.families import save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.equivalence.test_next_turn import answer, counted, num_here, prompts
from tests.local_cluster import config_of, request_of, until_idle

NUM_TOKENS = 90
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["llama", "gemma3_groups"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_family(request.param, folder)
    return folder


def config_with(folder: Path, tiers: dict[str, object] | None, *, roles: list[str]) -> PdrayConfig:
    """A pool for each role; of 40 blocks in each KV group, so that two long prompts fill it."""
    probe = Engine.load(folder, engine_config())
    engine = config_of(folder).pools["decode"].engine.model_dump(exclude_none=True)
    engine["kv_cache_bytes"] = 40 * len(probe.layout.groups) * probe.layout.block_bytes
    pools = {
        role: {"role": role, "node_groups": ["laptop"], "engine": engine, "tiers": tiers}
        for role in roles
    }
    return config_of(folder, pools=pools)


@asynccontextmanager
async def cluster_with(
    folder: Path, tiers: dict[str, object] | None, *, roles: list[str]
) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(config_with(folder, tiers, roles=roles), folder) as cluster:
        yield cluster
        await until_idle(cluster)
        for worker in cluster.workers:
            worker.engine.pool.check_integrity()
            assert worker.engine.num_unaccounted_blocks == 0
            worker.tiering.check_integrity()


def turn(history: list[int], name: str, session_id: str | None) -> Request:
    return request_of(history, NUM_TOKENS, request_id=name, session_id=session_id)


async def flood(cluster: LocalCluster, history: list[int]) -> None:
    """Others' prompts, until no worker has anything of this one on its device."""
    for number, each in enumerate(prompts(*[400] * 30, seed=2)):
        await answer(cluster, request_of(each, 60, request_id=f"other {number}"))
        if not any(num_here(worker, history) for worker in cluster.workers):
            return
    raise AssertionError("nothing was evicted")


def promoted(workers: list[Worker], tier: str) -> float:
    return sum(counted(worker, "pdray_kv_tier_hit_blocks_total", tier=tier) for worker in workers)


ROLES = pytest.mark.parametrize(
    "roles", [["mixed"], ["prefill", "decode"]], ids=["one worker", "two pools"]
)


@ROLES
@pytest.mark.parametrize("session_id", [None, "a conversation"], ids=["evicted", "session"])
async def test_a_conversation_goes_on_where_it_was(
    folder: Path, roles: list[str], session_id: str | None
) -> None:
    reference = Reference(folder)
    async with cluster_with(folder, {"host_bytes": "64MiB"}, roles=roles) as cluster:
        (history,) = prompts(100)
        for number in range(3):
            tokens, num_cached = await answer(cluster, turn(history, f"turn {number}", session_id))
            expected = reference.generate(history, NUM_TOKENS)
            assert_equal_up_to_ties(folder.name, [tokens], [expected])
            # All of it that was computed before, in whole blocks.
            assert num_cached == (0 if number == 0 else (len(history) - 9 - 1) // 16 * 16)
            history += [*tokens, *prompts(9, seed=number)[0]]
            await flood(cluster, history)
        assert promoted(cluster.workers, "host") > 0


@ROLES
async def test_the_disk_takes_what_the_host_has_no_room_for(
    folder: Path, tmp_path: Path, roles: list[str]
) -> None:
    reference = Reference(folder)
    # For four blocks: a conversation has more.
    host_bytes = 4 * Engine.load(folder, engine_config()).layout.block_bytes
    tiers = {"host_bytes": host_bytes, "disk_bytes": "64MiB", "disk_path": str(tmp_path / "kv")}
    async with cluster_with(folder, tiers, roles=roles) as cluster:
        (history,) = prompts(100)
        tokens, _ = await answer(cluster, turn(history, "first", "a conversation"))
        history += [*tokens, 7]
        for _ in range(3):
            await flood(cluster, history)
        tokens, num_cached = await answer(cluster, turn(history, "second", "a conversation"))
        assert num_cached == (len(history) - 2) // 16 * 16
        expected = reference.generate(history, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        assert promoted(cluster.workers, "disk") > 0


FIRST_LIFE = """
import asyncio, json, sys
from pathlib import Path
from tests.equivalence.test_tiers import *

async def main():
    folder, tiers = Path(sys.argv[1]), json.loads(sys.argv[2])
    (history,) = prompts(100)
    async with cluster_with(folder, tiers, roles=["mixed"]) as cluster:
        tokens, _ = await answer(cluster, turn(history, "first", "a conversation"))
        (worker,) = cluster.workers
        await until_idle(cluster)
        while not counted(worker, "pdray_kv_tier_demoted_blocks_total", tier="disk"):
            await asyncio.sleep(0.01)
        await flood(cluster, history)
    print(json.dumps(tokens))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_worker_in_another_process_goes_on_with_it(folder: Path, tmp_path: Path) -> None:
    tiers = {"host_bytes": "8MiB", "disk_bytes": "64MiB", "disk_path": str(tmp_path / "kv")}
    command = [sys.executable, "-c", FIRST_LIFE, str(folder), json.dumps(tiers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (history,) = prompts(100)
    history += [*json.loads(done.stdout), 7]
    async with cluster_with(folder, tiers, roles=["mixed"]) as cluster:
        tokens, num_cached = await answer(cluster, turn(history, "second", "a conversation"))
        assert num_cached == (len(history) - 2) // 16 * 16
        assert promoted(cluster.workers, "disk") > 0
    expected = Reference(folder).generate(history, NUM_TOKENS)
    assert_equal_up_to_ties(folder.name, [tokens], [expected])


@pytest.mark.slow
async def test_torn_blocks_are_computed_again(folder: Path, tmp_path: Path) -> None:
    tiers = {"host_bytes": "8MiB", "disk_bytes": "64MiB", "disk_path": str(tmp_path / "kv")}
    command = [sys.executable, "-c", FIRST_LIFE, str(folder), json.dumps(tiers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (history,) = prompts(100)
    history += [*json.loads(done.stdout), 7]
    (file,) = (tmp_path / "kv").rglob("blocks")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :: 64] = bytes(len(data[len(data) // 2 :: 64]))
    file.write_bytes(data)
    async with cluster_with(folder, tiers, roles=["mixed"]) as cluster:
        tokens, _ = await answer(cluster, turn(history, "second", "a conversation"))
    expected = Reference(folder).generate(history, NUM_TOKENS)
    assert_equal_up_to_ties(folder.name, [tokens], [expected])
