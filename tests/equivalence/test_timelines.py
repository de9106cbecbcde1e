"""Timelines of requests that ran on real workers."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdray.config import parse_config
from pdray.core.request import Request
from pdray.core.timeline import Timeline
from pdray.frontend.text import Tokenizer
from pdray.frontend.text_stream import stream_text
from pdray.frontend.token_stream import TokenDelta
from pdray.local import LocalCluster
from pdray.serve.call_timelines import HEADER
from tests.equivalence.conftest import MODEL
from tests.equivalence.migration import config_with, move_once, running
from tests.local_cluster import config_of, random_prompts, request_of, tokens_of, until_idle
from tests.service import running_service, serving_service

PREFILL, DECODE = "prefill-0-local", "decode-0-local"


async def timeline_of(cluster: LocalCluster, request: Request) -> Timeline:
    return await last_timeline(cluster.frontend.generate(request))


async def last_timeline(deltas: AsyncGenerator[TokenDelta, None]) -> Timeline:
    *_, last = [delta async for delta in deltas]
    assert last.timeline is not None
    return last.timeline()


def names_of(timeline: Timeline) -> list[tuple[str, str | None]]:
    return [(phase.name, phase.worker_id) for phase in timeline.phases]


def e2e_sum(cluster: LocalCluster) -> float:
    """Of all requests, as the frontend's histogram has it."""
    families = text_string_to_metric_families(cluster.frontend.metrics.text().decode())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "pdray_e2e_request_latency_seconds_sum"
    )


async def test_two_workers_phases_add_up_to_the_whole(tiny_model_path: Path) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        prompts = random_prompts([1, 65, 200, 300])
        requests = [request_of(each, request_id=str(i)) for i, each in enumerate(prompts)]
        timelines = await asyncio.gather(*(timeline_of(cluster, each) for each in requests))
        for timeline in timelines:
            assert names_of(timeline) == [
                ("queued", None),
                ("prefill_wait", PREFILL),
                ("prefill", PREFILL),
                ("transfer", DECODE),
                ("decode_wait", DECODE),
                ("decode", DECODE),
            ]
            assert all(phase.duration_s >= 0 for phase in timeline.phases)
            by_name = {phase.name: phase.duration_s for phase in timeline.phases}
            assert by_name["prefill"] > 0
            assert by_name["decode"] > 0
        assert sum(each.total_s for each in timelines) == pytest.approx(e2e_sum(cluster))
        await until_idle(cluster)


async def test_one_token_is_made_by_prefill_alone(tiny_model_path: Path) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        timeline = await timeline_of(cluster, request_of([5] * 40, 1))
        assert [name for name, _ in names_of(timeline)] == ["queued", "prefill_wait", "prefill"]
        assert timeline.total_s == pytest.approx(e2e_sum(cluster))
        await until_idle(cluster)


async def test_one_worker_has_no_transfer(tiny_model_path: Path) -> None:
    data = config_of(tiny_model_path).model_dump(mode="json")
    pools = {"mixed": data["pools"]["decode"] | {"role": "mixed"}}
    config = parse_config(data | {"mode": "soft", "pools": pools})
    async with LocalCluster(config, tiny_model_path) as cluster:
        timeline = await timeline_of(cluster, request_of([5] * 40))
        assert names_of(timeline) == [
            ("queued", None),
            ("prefill_wait", "mixed-0-local"),
            ("prefill", "mixed-0-local"),
            ("decode", "mixed-0-local"),
        ]
        assert timeline.total_s == pytest.approx(e2e_sum(cluster))


async def test_a_stop_string_leaves_a_timeline_too(tiny_model_path: Path) -> None:
    tokenizer = Tokenizer(tiny_model_path)
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        text = tokenizer.decode(await tokens_of(cluster, request_of([5] * 40)))
        deltas = [
            delta
            async for delta in stream_text(
                cluster.frontend, tokenizer, request_of([5] * 40, 200, request_id="s"), (text[-4:],)
            )
        ]
        await until_idle(cluster)
    assert all(delta.timeline is None for delta in deltas[:-1])
    last = deltas[-1]
    assert last.finish_reason == "stop"
    assert last.timeline is not None
    assert len(last.timeline.phases) == 6


async def test_one_that_moved_tells_of_both_decode_workers(tiny_model_path: Path) -> None:
    config = config_with(tiny_model_path, num_decode_workers=2)
    async with running(config, tiny_model_path) as cluster:
        running_request = asyncio.create_task(timeline_of(cluster, request_of([5] * 40, 200)))
        while not any(cluster.frontend.decoding_at(w.config.worker_id) for w in cluster.workers):
            await asyncio.sleep(0.01)
        assert await move_once(cluster, "r", random.Random(0))
        timeline = await running_request
        assert timeline.total_s == pytest.approx(e2e_sum(cluster))
    decodes = [worker_id for name, worker_id in names_of(timeline) if name == "decode"]
    assert sorted(map(str, decodes)) == ["decode-0-local", "decode-1-local"]


async def test_a_claimed_prompt_has_no_prefill_here(tiny_model_path: Path, tmp_path: Path) -> None:
    request = request_of([5] * 40, 8)
    async with running_service(tiny_model_path, tmp_path) as service:
        parked = await service.prefill.frontend.park(request_of([5] * 40, 2, request_id="p"))
        timeline = await last_timeline(
            service.decode.frontend.resume(request, parked, service.owner(parked))
        )
        assert timeline.total_s == pytest.approx(e2e_sum(service.decode))
        await service.until_idle()
    names = [name for name, _ in names_of(timeline)]
    assert names == ["queued", "transfer", "decode_wait", "decode"]


async def test_a_cancelled_request_leaves_nothing_of_its_times(tiny_model_path: Path) -> None:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        deltas = cluster.frontend.generate(request_of([5] * 300, 200))
        await anext(deltas)
        await deltas.aclose()
        await until_idle(cluster)
        gc.collect()
        assert [len(worker._phase_times._times) for worker in cluster.workers] == [0, 0]


async def test_the_openai_client_gets_it_from_prefill_and_decode_apart(
    client: openai.AsyncOpenAI,
) -> None:
    prompt, headers = random_prompts([100])[0], {HEADER: "1"}
    raw = await client.completions.with_raw_response.create(
        model=MODEL, prompt=prompt, max_tokens=8, n=2, extra_headers=headers
    )
    stream = await client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=8, stream=True, extra_headers=headers
    )
    chunks = [chunk async for chunk in stream]
    whole = json.loads(raw.headers[HEADER])
    assert chunks[-1].model_extra is not None
    assert [each["index"] for each in whole] == [0, 1]
    for timeline in (*whole, *chunks[-1].model_extra["timeline"]):
        workers = {phase["name"]: phase["worker"] for phase in timeline["phases"]}
        assert workers["prefill"] == PREFILL
        assert workers["transfer"] == workers["decode"] == DECODE
        spent_ms = sum(phase["ms"] for phase in timeline["phases"])
        assert spent_ms == pytest.approx(timeline["total_ms"], abs=0.01)


async def test_the_application_that_decodes_tells_of_its_own_phases(
    tiny_model_path: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    body = {"model": MODEL, "prompt": [5] * 40, "max_tokens": 8}
    async with (
        running_service(tiny_model_path, tmp_path) as service,
        serving_service(service, tokenizer, MODEL) as urls,
        httpx.AsyncClient() as http,
    ):
        prefilled = await http.post(f"{urls.prefill}/v1/prefill", json=body)
        handle = {"kv_handle": prefilled.json()["kv_handle"]}
        decoded = await http.post(f"{urls.decode}/v1/decode", json=handle, headers={HEADER: "1"})
        composed = await http.post(
            f"{urls.decode}/v1/completions", json=body, headers={HEADER: "1"}
        )
        refused = await http.post(
            f"{urls.decode}/v1/completions", json=body, headers={HEADER: "yes"}
        )
        await service.until_idle()
    for answer in (decoded, composed):
        (timeline,) = json.loads(answer.headers[HEADER])
        names = [phase["name"] for phase in timeline["phases"]]
        assert names == ["queued", "transfer", "decode_wait", "decode"]
    assert refused.status_code == 400
