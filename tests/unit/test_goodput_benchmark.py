"""What goodput offers, compares and starts; vLLM's pair behind its proxy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from benchmarks.goodput_compare import leaders_table, read_runs
from benchmarks.goodput_workload import parse_workload
from benchmarks.openai_stream import first_model
from benchmarks.servers import NO_TARGET_S, config_of
from benchmarks.vllm_pair import Pair
from pdray.config import parse_config
from tests.http_server import serving


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "service.csv"
    rows = [f"2023-11-16 18:17:{second:02}.5,{100 * second},{second}" for second in range(1, 60)]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return path


def test_requests_have_lengths_of_the_whole_trace_and_no_prompt_comes_twice(trace: Path) -> None:
    workload = parse_workload(f"{trace}:0.5/0.5:1,2", 2000, 20)
    asks = workload.draw(500, "one")
    lengths = {(len(ask.prompt), ask.max_tokens) for ask in asks}
    assert {prompt for prompt, _ in lengths} == {min(2000, 50 * each) for each in range(1, 60)}
    assert max(output for _, output in lengths) == 20
    assert len({ask.prompt for ask in asks}) == len(asks)


def test_every_system_is_offered_the_same_requests_at_the_same_times() -> None:
    first, second = (parse_workload("short:4,8", 100, 100).schedule(4.0, 30.0) for _ in "ab")
    assert first == second
    assert all(arrival_s <= 30.0 for arrival_s, _ in first)
    assert 60 < len(first) < 240
    other = parse_workload("short:4,8", 100, 100).schedule(8.0, 30.0)
    assert not {ask.prompt for _, ask in first} & {ask.prompt for _, ask in other}


@pytest.mark.parametrize(
    "text", ["short", "short:fast", "short:1,-2", "t.csv:1", "t.csv:1:2", "t.csv:1/0:2"]
)
def test_a_workload_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="workload"):
        parse_workload(text, 100, 100)


@pytest.mark.parametrize("system", ["pooled", "soft", "auto", "chunks-128", "one-soft"])
def test_the_systems_are_configurations_that_load(system: str) -> None:
    parse_config(config_of(system, 0.1), source=system)


def test_one_engine_has_the_threads_of_two_and_fixed_chunks_have_no_target() -> None:
    config = config_of("one-chunks-256", 0.1)
    pool = config["pools"]["mixed"]  # type: ignore[index]
    assert pool["replicas"] == 1
    assert pool["engine"]["num_threads"] == 2
    assert pool["engine"]["max_tokens_per_step"] == 256
    assert config["slo"]["itl_s"] == NO_TARGET_S  # type: ignore[index]


@pytest.mark.parametrize("system", ["chunks", "chunks-x", "one-auto", "softer"])
def test_an_unknown_system_is_refused(system: str) -> None:
    with pytest.raises(ValueError, match="accepted"):
        config_of(system, 0.1)


def run_of(ttft_s: float, **shares: float) -> dict[str, object]:
    findings = [
        {"system": system, "workload": "w", "rate_rps": 1.0, "attainments": {"0.9": {"1.0": share}}}
        for system, share in shares.items()
    ]
    return {"machine": {"cpu": "one"}, "slos": {"w": {"ttft_s": ttft_s}}, "findings": findings}


def test_runs_of_the_same_slo_become_one_and_the_best_of_each_side_leads(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(run_of(1.0, vllm=0.25, soft=0.5)))
    paths[1].write_text(json.dumps(run_of(1.0, auto=0.75)))
    _, workloads = read_runs(paths)
    assert set(workloads["w"]) == {("vllm", 1.0), ("soft", 1.0), ("auto", 1.0)}
    (cell,) = leaders_table("w", workloads["w"], 0.9).columns[1].cells
    assert cell == "auto 75 : vllm 25"


def test_runs_of_different_slos_or_of_the_same_load_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(run_of(1.0, soft=0.5)))
    for other, said in ((run_of(2.0, auto=0.5), "SLO"), (run_of(1.0, soft=0.6), "soft")):
        paths[1].write_text(json.dumps(other))
        with pytest.raises(ValueError, match=said):
            read_runs(paths)


async def test_the_pair_prefills_on_one_server_and_streams_from_the_other() -> None:
    prefill, decode = FastAPI(), FastAPI()
    bodies: list[dict[str, object]] = []

    @prefill.post("/v1/completions")
    async def prefill_prompt(request: Request) -> dict[str, object]:
        bodies.append(await request.json())
        return {"kv_transfer_params": {"remote_block_ids": [3, 5]}}

    @decode.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"data": [{"id": "demo"}]}

    @decode.post("/v1/completions")
    async def stream(request: Request) -> StreamingResponse:
        bodies.append(await request.json())

        async def events() -> AsyncIterator[bytes]:
            yield b"data: one\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    asked = {"prompt": [1, 2], "max_tokens": 7, "stream": True, "stream_options": {"x": True}}
    async with serving(prefill) as prefill_url, serving(decode) as decode_url:
        proxy = TestServer(Pair(prefill_url, decode_url).application())
        async with (
            proxy,
            aiohttp.ClientSession() as session,
            session.post(proxy.make_url("/v1/completions"), json=asked) as answer,
        ):
            assert answer.content_type == "text/event-stream"
            assert await answer.read() == b"data: one\n\ndata: [DONE]\n\n"
            assert await first_model(session, str(proxy.make_url("/"))) == "demo"
    first, second = bodies
    assert (first["max_tokens"], first["stream"]) == (1, False)
    assert "stream_options" not in first
    assert first["kv_transfer_params"]["do_remote_decode"] is True  # type: ignore[index]
    assert second == asked | {"kv_transfer_params": {"remote_block_ids": [3, 5]}}
