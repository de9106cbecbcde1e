"""Requests that lose their workers: what their clients see is what they would have seen without."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pdray.config import PdrayConfig
from pdray.core.grammar import Grammar, GrammarKind
from pdray.core.request import FinishReason, Request
from pdray.core.timeline import Timeline
from pdray.frontend.text import Tokenizer
from pdray.frontend.text_stream import stream_text
from pdray.local import LocalCluster
from pdray.worker.worker import Worker
from tests.equivalence.migration import Answer, answer_of, config_with, decoder_of
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.local_cluster import is_idle, num_placed_again, random_prompts, request_of
from tests.worker_peer import until

NUM_TOKENS = 150
SAMPLING: list[dict[str, object]] = [
    {"logprobs": 2},
    {"temperature": 0.9, "top_p": 0.95, "logprobs": 0},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5, "temperature": 0.7},
    {"repetition_penalty": 1.3},
    {"min_tokens": 100, "stop_token_ids": tuple(range(3, 200)), "temperature": 1.0},
    {"prompt_logprobs": 1, "temperature": 1.0},
    {"grammar": Grammar(kind=GrammarKind.REGEX, text="[a-z]{140}"), "temperature": 0.8},
]
LENGTHS = [1, 40, 100, 200, 64, 33, 20]


def requests_of(prefix: str) -> list[Request]:
    requests = []
    for i, (prompt, more) in enumerate(zip(random_prompts(LENGTHS), SAMPLING, strict=True)):
        request = request_of(prompt, NUM_TOKENS, request_id=f"{prefix}{i}", cache_salt=prefix)
        requests.append(replace(request, sampling=replace(request.sampling, **more)))
    return requests


def config_of(model_path: Path) -> PdrayConfig:
    config = config_with(model_path, num_decode_workers=3, transport="nixl")
    prefill = config.pools["prefill"].model_copy(update={"replicas": 2})
    return config.model_copy(update={"pools": config.pools | {"prefill": prefill}})


async def stop_a_decoder(cluster: LocalCluster, request_id: str, num_tokens: int) -> Worker:
    """Once so many tokens of the request are there."""
    await until(lambda: request_id in cluster.frontend._live)
    live = cluster.frontend._live[request_id]
    await until(lambda: live.num_output_tokens >= num_tokens and live.decoder_id is not None)
    worker = decoder_of(cluster, request_id)
    assert worker is not None
    await worker.stop()
    return worker


async def stop_its_prefill(cluster: LocalCluster, request_id: str) -> Worker:
    """While the prompt waits or runs."""
    await until(lambda: request_id in cluster.frontend._live)
    live = cluster.frontend._live[request_id]
    await until(lambda: live.prefill_id is not None)
    (worker,) = (each for each in cluster.workers if each.config.worker_id == live.prefill_id)
    await worker.stop()
    return worker


def assert_equal(answer: Answer, undisturbed: Answer) -> None:
    assert answer.token_ids == undisturbed.token_ids
    assert answer.logprobs == pytest.approx(undisturbed.logprobs, abs=2e-4)
    assert answer.num_prompt_logprobs == undisturbed.num_prompt_logprobs
    assert answer.finish_reason == undisturbed.finish_reason


async def test_decode_workers_that_end_in_mid_stream_change_nothing(tiny_model_path: Path) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        calm = [await answer_of(cluster, each) for each in requests_of("calm ")]
        reference = Reference(tiny_model_path).generate(random_prompts(LENGTHS)[0], NUM_TOKENS)
        assert_equal_up_to_ties("calm", [calm[0].token_ids], [reference])
        requests = requests_of("lost ")
        answering = asyncio.gather(*(answer_of(cluster, each) for each in requests))
        stopped = [await stop_a_decoder(cluster, requests[0].request_id, 5)]
        stopped.append(await stop_a_decoder(cluster, requests[0].request_id, 40))
        assert stopped[0] is not stopped[1]
        for answer, undisturbed in zip(await answering, calm, strict=True):
            assert_equal(answer, undisturbed)
        assert num_placed_again(cluster.frontend) >= 2
        assert cluster.frontend.num_in_flight == 0
        left = [each for each in cluster.workers if each not in stopped]
        await until(lambda: all(map(is_idle, left)))


async def test_a_prefill_worker_that_ends_under_its_prompts_changes_nothing(
    tiny_model_path: Path,
) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        calm = [await answer_of(cluster, each) for each in requests_of("calm ")]
        requests = requests_of("lost ")
        answering = asyncio.gather(*(answer_of(cluster, each) for each in requests))
        stopped = await stop_its_prefill(cluster, requests[3].request_id)
        for answer, undisturbed in zip(await answering, calm, strict=True):
            assert_equal(answer, undisturbed)
        left = [each for each in cluster.workers if each is not stopped]
        await until(lambda: all(map(is_idle, left)))


async def test_a_stop_string_ends_the_text_where_it_would_and_the_timeline_has_both_attempts(
    tiny_model_path: Path,
) -> None:
    tokenizer = Tokenizer(tiny_model_path)
    letters = Grammar(kind=GrammarKind.REGEX, text="[a-z]{140}")

    async def ask(cluster: LocalCluster, request_id: str, *stop: str) -> tuple[str, Timeline]:
        request = request_of([5] * 40, NUM_TOKENS, request_id=request_id, temperature=1.0)
        request = replace(request, sampling=replace(request.sampling, grammar=letters))
        texts = stream_text(cluster.frontend, tokenizer, request, stop)
        deltas = [each async for each in texts]
        assert not stop or deltas[-1].finish_reason is FinishReason.STOP
        timeline = deltas[-1].timeline
        assert timeline is not None
        return "".join(each.text for each in deltas), timeline

    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        whole, calm = await ask(cluster, "calm")
        stop = whole[90:130]
        reading = asyncio.create_task(ask(cluster, "lost", stop))
        await stop_a_decoder(cluster, "lost", 20)
        text, timeline = await reading
        assert text == whole[: whole.index(stop)]
        names = [phase.name for phase in calm.phases]
        assert [phase.name for phase in timeline.phases] == names * 2
        assert all(phase.duration_s >= 0 for phase in timeline.phases)
        assert num_placed_again(cluster.frontend) == 1
