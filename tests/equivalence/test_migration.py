"""Requests that move between decode workers while they decode: what their clients see is what they
would have seen without."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdray.core.errors import MigrationError
from pdray.core.grammar import Grammar, GrammarKind
from pdray.core.request import Request
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.equivalence.families import save_family
from tests.equivalence.migration import (
    Answer,
    answer_of,
    answer_on_the_move,
    config_with,
    decoder_of,
    move_once,
    running,
)
from tests.local_cluster import random_prompts, request_of
from tests.worker_peer import until

NUM_TOKENS = 150
SAMPLING: list[dict[str, object]] = [
    {"logprobs": 2},
    {"temperature": 0.9, "top_p": 0.95, "logprobs": 0},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "temperature": 0.7},
    {"min_tokens": 100, "stop_token_ids": tuple(range(3, 200)), "temperature": 1.0},
    {"prompt_logprobs": 1, "temperature": 1.0},
]
LETTERS = {"grammar": Grammar(kind=GrammarKind.REGEX, text="[a-z]{140}"), "temperature": 0.8}
LENGTHS = [1, 40, 100, 200, 64, 33]


def requests_of(sampling: list[dict[str, object]]) -> list[Request]:
    requests = []
    for i, (prompt, more) in enumerate(zip(random_prompts(LENGTHS), sampling, strict=False)):
        request = request_of(prompt, NUM_TOKENS, request_id=str(i), cache_salt=str(i))
        requests.append(replace(request, sampling=replace(request.sampling, **more)))
    return requests


def assert_equal(answer: Answer, undisturbed: Answer) -> None:
    assert answer.token_ids == undisturbed.token_ids
    assert answer.logprobs == pytest.approx(undisturbed.logprobs, abs=2e-4)
    assert answer.num_prompt_logprobs == undisturbed.num_prompt_logprobs
    assert answer.finish_reason == undisturbed.finish_reason


def counted(cluster: LocalCluster, name: str, **labels: str) -> float:
    texts = [cluster.frontend.metrics.text(), *(w.metrics_text() for w in cluster.workers)]
    return sum(
        sample.value
        for text in texts
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize("transport", ["loopback", "nixl"])
async def test_moved_back_and_forth_a_request_says_the_same(
    tiny_model_path: Path, transport: str
) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2, transport=transport)
    async with running(config, tiny_model_path) as cluster:
        rng, num_moves = random.Random(0), 0
        for request in requests_of([*SAMPLING, LETTERS]):
            calm = await answer_of(cluster, replace(request, request_id="calm", cache_salt="calm"))
            moved, num = await answer_on_the_move(cluster, request, rng)
            assert_equal(moved, calm)
            num_moves += num
        assert num_moves >= 12
        # The last token may overtake the news of the last move, or be made before it.
        num_let_go = counted(cluster, "pdray_migrations_total", outcome="moved")
        assert num_moves <= num_let_go <= num_moves + len(LENGTHS)
        num_pauses = counted(cluster, "pdray_migration_pause_seconds_count")
        assert 0 < num_pauses <= num_let_go  # moved on before it said a word, it pauses once


@pytest.mark.parametrize("family", ["gpt_oss_sinks", "gemma3_groups"])
async def test_of_a_sliding_window_only_what_is_inside_moves(tmp_path: Path, family: str) -> None:
    save_family(family, tmp_path)
    config = config_with(tmp_path, num_decode_workers=3)
    async with running(config, tmp_path) as cluster:
        rng, num_moves = random.Random(0), 0
        for request in requests_of(SAMPLING):
            calm = await answer_of(cluster, replace(request, request_id="calm", cache_salt="calm"))
            moved, num = await answer_on_the_move(cluster, request, rng)
            assert_equal(moved, calm)
            num_moves += num
        assert num_moves >= 10


async def test_many_requests_move_at_once_while_others_are_aborted(tiny_model_path: Path) -> None:
    config = config_with(
        tiny_model_path, num_decode_workers=3, transport="nixl", kv_cache_bytes="16MiB"
    )
    requests = [
        request_of(prompt, 120, request_id=str(i), temperature=i % 2, cache_salt=str(i))
        for i, prompt in enumerate(random_prompts([20 + 11 * i for i in range(16)]))
    ]
    async with running(config, tiny_model_path) as cluster:
        calm = [await answer_of(cluster, each) for each in requests]
        rng = random.Random(3)
        answering = [asyncio.create_task(answer_of(cluster, each)) for each in requests]
        num_moves = 0

        async def keep_moving(request_id: str) -> None:
            nonlocal num_moves
            while not answering[int(request_id)].done():
                num_moves += await move_once(cluster, request_id, rng)
                await asyncio.sleep(rng.uniform(0.0, 0.05))

        async def abort(number: int) -> None:
            await asyncio.sleep(rng.uniform(0.2, 1.5))
            answering[number].cancel()

        moving = [keep_moving(each.request_id) for each in requests]
        await asyncio.gather(*moving, *(abort(number) for number in range(0, 16, 4)))
        answers = await asyncio.gather(*answering, return_exceptions=True)
        assert num_moves >= 16
    for number, (answer, expected) in enumerate(zip(answers, calm, strict=True)):
        if isinstance(answer, Answer):
            assert_equal(answer, expected)
        else:
            assert isinstance(answer, asyncio.CancelledError)
            assert number % 4 == 0


async def test_what_cannot_move_is_refused_and_goes_on(tiny_model_path: Path) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2)
    async with running(config, tiny_model_path) as cluster:
        request = request_of(random_prompts([50])[0], 200)
        calm = await answer_of(cluster, replace(request, request_id="calm"))
        frontend, answering = cluster.frontend, asyncio.create_task(answer_of(cluster, request))
        first, second = cluster.workers_of("decode")
        with pytest.raises(MigrationError, match="no request x runs here"):
            await frontend.migrate("x", first.info().address)
        await until(lambda: decoder_of(cluster, "r") is not None)
        source = decoder_of(cluster, "r")
        assert source is not None
        with pytest.raises(MigrationError, match="it runs on decode"):
            await frontend.migrate("r", source.info().address)
        (target,) = {first, second} - {source}
        draining = asyncio.create_task(target.drain())
        await asyncio.sleep(0)
        with pytest.raises(MigrationError, match="the worker is draining"):
            await frontend.migrate("r", target.info().address)
        assert_equal(await answering, calm)
        await draining


async def until_it_pulls(target: Worker) -> None:
    """Looks in every round of the loop: the whole of a pull takes some of them."""
    async with asyncio.timeout(20):
        while not target._pulling.num_active:
            await asyncio.sleep(0)


async def test_a_target_that_is_lost_leaves_the_request_where_it_is(tiny_model_path: Path) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2)
    async with LocalCluster(config, tiny_model_path) as cluster:
        request = request_of(random_prompts([300])[0], 150)
        calm = await answer_of(cluster, replace(request, request_id="calm", cache_salt="calm"))
        answering = asyncio.create_task(answer_of(cluster, request))
        await until(lambda: decoder_of(cluster, "r") is not None)
        source = decoder_of(cluster, "r")
        assert source is not None
        (target,) = (each for each in cluster.workers_of("decode") if each is not source)
        moving = asyncio.create_task(cluster.frontend.migrate("r", target.info().address))
        await until_it_pulls(target)
        await target.stop()
        with pytest.raises(MigrationError):
            await moving
        assert_equal(await answering, calm)
        await until(lambda: source.snapshot().num_held_blocks == 0)


async def test_a_source_that_is_lost_before_all_has_moved_has_the_request_placed_again(
    tiny_model_path: Path,
) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2)
    async with LocalCluster(config, tiny_model_path) as cluster:
        calm = await answer_of(cluster, request_of([5] * 300, 150, request_id="calm"))
        request = request_of([5] * 300, 150, cache_salt="another")
        answering = asyncio.create_task(answer_of(cluster, request))
        await until(lambda: decoder_of(cluster, "r") is not None)
        source = decoder_of(cluster, "r")
        assert source is not None
        (target,) = (each for each in cluster.workers_of("decode") if each is not source)
        moving = asyncio.create_task(cluster.frontend.migrate("r", target.info().address))
        await until_it_pulls(target)
        await source.stop()
        with pytest.raises(MigrationError):
            await moving
        assert_equal(await answering, calm)
        await until(lambda: target.snapshot().num_held_blocks == 0)
