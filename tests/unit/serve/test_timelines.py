"""Timelines as clients get them: in a header, or in a stream's last chunk."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from pdray.core.errors import WorkerLostError
from pdray.core.request import FinishReason, Request, WorkerId
from pdray.core.timeline import Phase, PhaseName, Timeline
from pdray.serve.call_timelines import HEADER, MAX_CHOICES
from tests.scripted_source import Script, ScriptedSource, delta, spelled
from tests.unit.serve.conftest import MODEL, OpenApi, OpenServer

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 8}
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
ANSWER = [ord(char) - ord("!") for char in "abc"]  # the tiny vocabulary starts at "!"
ASKED = {HEADER: "1"}

TIMELINE = Timeline(
    arrived_at=5.0,
    phases=(
        Phase(name=PhaseName.QUEUED, start_s=0.0, duration_s=0.0015, worker_id=None),
        Phase(name=PhaseName.PREFILL_WAIT, start_s=0.0015, duration_s=0.5, worker_id=WorkerId("p")),
        Phase(name=PhaseName.PREFILL, start_s=0.5015, duration_s=0.25, worker_id=WorkerId("p")),
    ),
)
SENT = {
    "total_ms": 751.5,
    "phases": [
        {"name": "queued", "ms": 1.5, "worker": None},
        {"name": "prefill_wait", "ms": 500.0, "worker": "p"},
        {"name": "prefill", "ms": 250.0, "worker": "p"},
    ],
}


def timed(request: Request) -> Script:
    return [
        replace(each, timeline=lambda: TIMELINE) for each in spelled(ANSWER, FinishReason.LENGTH)
    ]


def events_of(response: httpx.Response) -> list[str]:
    return [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]


@pytest.mark.parametrize(
    ("path", "body"), [("completions", COMPLETION), ("chat/completions", CHAT)], ids=lambda x: x
)
@pytest.mark.parametrize("with_usage", [False, True])
async def test_a_stream_ends_with_a_chunk_that_has_it(
    open_api: OpenApi, path: str, body: dict[str, Any], with_usage: bool
) -> None:
    asked = body | {"stream": True, "n": 2, "stream_options": {"include_usage": with_usage}}
    async with open_api(ScriptedSource(timed)) as client:
        response = await client.post(f"/v1/{path}", json=asked, headers=ASKED)
        plain = await client.post(f"/v1/{path}", json=asked, headers={HEADER: "0"})
    *others, last, done = events_of(response)
    assert done == "[DONE]"
    chunk = json.loads(last)
    assert chunk["timeline"] == [{"index": 0} | SENT, {"index": 1} | SENT]
    assert chunk["choices"] == []
    assert chunk.get("usage") is None
    assert chunk.keys() - {"timeline"} == json.loads(others[0]).keys()
    assert all("timeline" not in json.loads(event) for event in others)
    assert len(events_of(plain)) == len(others) + 1
    assert HEADER not in response.headers


async def test_a_whole_answer_has_it_in_a_header(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(timed)) as client:
        one = await client.post("/v1/completions", json=COMPLETION, headers=ASKED)
        two = await client.post("/v1/chat/completions", json=CHAT | {"n": 2}, headers=ASKED)
        plain = await client.post("/v1/completions", json=COMPLETION)
    assert json.loads(one.headers[HEADER]) == [{"index": 0} | SENT]
    assert ", " not in one.headers[HEADER]
    assert json.loads(two.headers[HEADER]) == [{"index": 0} | SENT, {"index": 1} | SENT]
    assert HEADER not in plain.headers
    assert one.json().keys() == plain.json().keys()


async def test_a_stop_string_ends_a_timeline(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(timed)) as client:
        answer = await client.post(
            "/v1/completions", json=COMPLETION | {"stop": "b"}, headers=ASKED
        )
    assert json.loads(answer.headers[HEADER]) == [{"index": 0} | SENT]


@pytest.mark.parametrize("value", ["", "true", "2", "01"])
async def test_another_value_is_refused(open_api: OpenApi, value: str) -> None:
    source = ScriptedSource(timed)
    async with open_api(source) as client:
        refused = await client.post("/v1/completions", json=COMPLETION, headers={HEADER: value})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["message"] == f"the header {HEADER} is {value!r}; accepted: 0 or 1"
    assert error["param"] == HEADER
    assert source.requests == []


async def test_too_many_for_a_header_are_refused(open_api: OpenApi) -> None:
    body = COMPLETION | {"n": MAX_CHOICES + 1}
    async with open_api(ScriptedSource(timed)) as client:
        refused = await client.post("/v1/completions", json=body, headers=ASKED)
        streamed = await client.post("/v1/completions", json=body | {"stream": True}, headers=ASKED)
        plain = await client.post("/v1/completions", json=body)
    assert refused.status_code == 400
    assert f"9 choices in a whole answer; accepted: up to {MAX_CHOICES}" in refused.text
    assert len(json.loads(events_of(streamed)[-2])["timeline"]) == MAX_CHOICES + 1
    assert plain.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_has_none(open_api: OpenApi, stream: bool) -> None:
    source = ScriptedSource(lambda request: [delta(ANSWER[0]), WorkerLostError("gone")])
    async with open_api(source) as client:
        failed = await client.post(
            "/v1/completions", json=COMPLETION | {"stream": stream}, headers=ASKED
        )
    assert "gone" in failed.text
    assert "timeline" not in failed.text
    assert HEADER not in failed.headers


async def test_the_openai_client_reads_it(open_server: OpenServer) -> None:
    async with (
        open_server(ScriptedSource(timed)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(
            model=MODEL, messages=CHAT["messages"], extra_headers=ASKED
        )
        stream = await client.chat.completions.create(
            model=MODEL, messages=CHAT["messages"], stream=True, extra_headers=ASKED
        )
        chunks = [chunk async for chunk in stream]
        texts = await client.completions.create(
            model=MODEL, prompt="Hi", stream=True, extra_headers=ASKED
        )
        text_chunks = [chunk async for chunk in texts]
    assert raw.parse().choices[0].message.content == "abc"
    assert json.loads(raw.headers[HEADER]) == [{"index": 0} | SENT]
    for last in (chunks[-1], text_chunks[-1]):
        assert last.choices == []
        assert last.model_extra == {"timeline": [{"index": 0} | SENT]}
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "abc"
