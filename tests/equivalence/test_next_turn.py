"""The next turn of a conversation begins where the last one ended: prefill pulls what decode
made."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdray.core.clock import WallClock
from pdray.core.placement import PlacementAsk
from pdray.core.request import Request
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence
from pdray.frontend.prefix_names import PrefixNames
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.engine_driver import engine_config, random_prompts
from tests.equivalence.families import VOCAB_SIZE, save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.fleet_factories import make_ask
from tests.local_cluster import config_of, request_of, until_idle
from tests.worker_peer import until

NUM_TOKENS = 100


@pytest.fixture(params=["llama", "gemma3_groups"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_family(request.param, tmp_path)
    return tmp_path


@pytest.fixture(params=["loopback", "nixl"])
async def cluster(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[LocalCluster]:
    config = config_of(folder, transfer={"transport": request.param})
    async with LocalCluster(config, folder) as cluster:
        yield cluster
        await until_idle(cluster)


async def answer(cluster: LocalCluster, request: Request) -> tuple[list[int], int]:
    """Its tokens, and how many of the prompt's were cached."""
    tokens: list[int] = []
    num_cached = None
    async for delta in cluster.frontend.generate(request):
        tokens += delta.token_ids
        num_cached = delta.num_cached_tokens if num_cached is None else num_cached
    assert num_cached is not None
    return tokens, num_cached


def counted(worker: Worker, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(worker.metrics_text().decode())
    samples = [each for family in families for each in family.samples if each.name == name]
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def greedy(prompt: list[int], name: str, cache_salt: str | None = None) -> Request:
    return request_of(prompt, NUM_TOKENS, request_id=name, cache_salt=cache_salt)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    return random_prompts(lengths, vocab_size=VOCAB_SIZE, seed=seed)


async def test_prefill_computes_only_what_is_new(folder: Path, cluster: LocalCluster) -> None:
    (prefill,), (decode,) = cluster.workers_of("prefill"), cluster.workers_of("decode")
    reference = Reference(folder)
    turn, question = prompts(100), prompts(20, 20, 20, seed=1)
    history = turn[0]
    for number, new in enumerate(question):
        before = counted(prefill, "pdray_engine_tokens_total", phase="prefill")
        tokens, num_cached = await answer(cluster, greedy(history, f"turn {number}"))
        expected = reference.generate(history, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        computed = counted(prefill, "pdray_engine_tokens_total", phase="prefill") - before
        assert computed == len(history) - num_cached
        # All but the newest token had its KV, in whole blocks.
        known = 0 if number == 0 else (len(history) - len(question[0]) - 1) // 16 * 16
        assert num_cached == known
        history = history + tokens + new
        await until_idle(cluster)
    assert counted(prefill, "pdray_prefix_borrows_total", outcome="filled") == 2
    assert counted(prefill, "pdray_prefix_borrows_total", outcome="vain") == 0
    from_decode = {"source_pool": "decode", "target_pool": "prefill"}
    num_bytes = counted(prefill, "pdray_kv_transfer_bytes_total", **from_decode)
    num_blocks = counted(prefill, "pdray_kv_transfer_blocks_total", **from_decode)
    assert num_bytes == num_blocks * decode.engine.layout.block_bytes > 0


@pytest.mark.parametrize("cache_salt", [None, "tenant"])
async def test_what_workers_tell_of_their_prefixes_is_what_placement_looks_for(
    folder: Path, cache_salt: str | None
) -> None:
    async with of_two(folder) as cluster:
        (history,) = prompts(100)
        tokens, _ = await answer(cluster, greedy(history, "first", cache_salt))
        history += tokens
        turn, stranger = (greedy(history, "turn", salt) for salt in (cache_salt, "another"))
        digest = cluster.workers[0].engine.layout.model_digest
        asks = [
            replace(make_ask(each.request_id), prefix_names=PrefixNames(each, digest).names)
            for each in (turn, stranger)
        ]

        def told(ask: PlacementAsk) -> list[int]:
            tell = cluster.plane.fleet.cached_tokens_at
            return [tell(ask, worker.config.worker_id) for worker in cluster.workers]

        expected = [num_here(worker, history, cache_salt) for worker in cluster.workers]
        assert max(expected) == (len(history) - 1) // 16 * 16
        await until(lambda: told(asks[0]) == expected)
        assert told(asks[1]) == [0] * len(cluster.workers)
        await until_idle(cluster)


async def test_another_tenant_gets_nothing_of_it(cluster: LocalCluster) -> None:
    (prefill,) = cluster.workers_of("prefill")
    (history,) = prompts(100)
    tokens, _ = await answer(cluster, greedy(history, "first", "tenant"))
    history += tokens
    assert await answer(cluster, greedy(history, "other", "another")) == (
        (await answer(cluster, greedy(history, "alone", "nobody")))[0],
        0,
    )
    assert counted(prefill, "pdray_prefix_borrows_total") == 0


@asynccontextmanager
async def of_two(folder: Path, **decode: object) -> AsyncIterator[LocalCluster]:
    """Two workers in each pool."""
    config = config_of(folder, decode=decode)
    pools = {
        name: {"role": name, "node_groups": ["laptop"], "replicas": 2}
        | {"engine": config.pools[name].engine.model_dump(exclude_none=True)}
        for name in ("prefill", "decode")
    }
    async with LocalCluster(config_of(folder, pools=pools), folder) as cluster:
        yield cluster


def num_here(worker: Worker, token_ids: list[int], cache_salt: str | None = None) -> int:
    """Of the tokens, how many have their KV in its prefix cache."""
    request = request_of(token_ids, cache_salt=cache_salt)
    sequence = Sequence.from_request(request, 0, is_lent=False)
    worker.engine.prefix_cache.hash(sequence)
    return worker.engine.shared_prefixes.count_tokens(sequence.prefix_hashes)


async def test_any_prefill_worker_gets_it_from_whichever_decode_worker_has_it(
    folder: Path,
) -> None:
    reference = Reference(folder)
    async with of_two(folder) as cluster:
        histories = prompts(90, 100, 110, 120)
        for number in range(3):
            requests = [greedy(each, f"{number}.{i}") for i, each in enumerate(histories)]
            answers = await asyncio.gather(*(answer(cluster, each) for each in requests))
            for history, (tokens, num_cached) in zip(histories, answers, strict=True):
                expected = reference.generate(history, NUM_TOKENS)
                assert_equal_up_to_ties(folder.name, [tokens], [expected])
                if number:
                    assert num_cached == (len(history) - 10 - 1) // 16 * 16
                history += [*tokens, *prompts(10, seed=number)[0]]
            await until_idle(cluster)


async def test_turns_that_are_cancelled_at_random_moments_give_all_back(folder: Path) -> None:
    rng = random.Random(3)
    async with of_two(folder) as cluster:
        histories = prompts(*(rng.randrange(60, 150) for _ in range(6)))
        for number in range(3):
            whole = [greedy(each, f"{number}.{i}") for i, each in enumerate(histories)]
            answers = await asyncio.gather(*(answer(cluster, each) for each in whole))
            histories = [
                [*history, *tokens[:60], 7]
                for history, (tokens, _) in zip(histories, answers, strict=True)
            ]
            cut = [greedy(each, f"cut {number}.{i}") for i, each in enumerate(histories * 2)]
            tasks = [asyncio.create_task(answer(cluster, each)) for each in cut]
            for task in tasks:
                await asyncio.sleep(rng.uniform(0.0, 0.05))
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until_idle(cluster)


@pytest.mark.parametrize("is_known", [False, True], ids=["unknown to control", "known"])
async def test_with_its_decode_worker_gone_the_next_turn_is_computed(
    folder: Path, is_known: bool
) -> None:
    reference = Reference(folder)
    async with of_two(folder) as cluster:
        (history,) = prompts(100)
        tokens, _ = await answer(cluster, greedy(history, "first"))
        history += [*tokens, 7]
        source = max(cluster.workers_of("decode"), key=lambda each: num_here(each, history))
        assert num_here(source, history) == 192
        await source.stop()
        cluster.workers.remove(source)
        if is_known:
            cluster.plane.worker_left(source.config.worker_id, WallClock().now())
        else:
            cluster.plane.worker_draining(source.config.worker_id, WallClock().now())
        tokens, num_cached = await answer(cluster, greedy(history, "second"))
        assert num_cached <= 96
        expected = reference.generate(history, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        await until_idle(cluster)


async def test_what_was_evicted_in_between_is_computed(folder: Path) -> None:
    reference = Reference(folder)
    probe = Engine.load(folder, engine_config())
    num_blocks = 40 * len(probe.layout.groups)
    small = {"kv_cache_bytes": num_blocks * probe.layout.block_bytes}
    async with LocalCluster(config_of(folder, decode=small), folder) as cluster:
        (prefill,), (decode,) = cluster.workers_of("prefill"), cluster.workers_of("decode")
        (history,) = prompts(100)
        tokens, _ = await answer(cluster, greedy(history, "first"))
        history += [*tokens, 7]
        for number, each in enumerate(prompts(*[300] * 30, seed=2)):
            await answer(cluster, greedy(each, f"other {number}"))
            if num_here(decode, history) < 64:
                break
        else:
            raise AssertionError("nothing was evicted")
        tokens, num_cached = await answer(cluster, greedy(history, "second"))
        assert num_cached <= 96
        assert counted(prefill, "pdray_prefix_borrows_total", outcome="vain") == 1
        expected = reference.generate(history, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        await until_idle(cluster)
