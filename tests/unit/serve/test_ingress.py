"""The routes in process: shapes of answers and chunks, errors, limits."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from pdray.core.errors import (
    OverloadedError,
    PdrayError,
    SlowReaderError,
    UnavailableError,
    WorkerLostError,
)
from pdray.core.request import FinishReason, Request
from pdray.serve.ingress import MAX_BODY_BYTES
from tests.scripted_source import Script, ScriptedSource, delta, spelled
from tests.unit.serve.conftest import MODEL, OpenApi

COMPLETION = {"model": MODEL, "prompt": "Hi", "max_tokens": 8}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
ANSWER = [ord(char) - ord("!") for char in "abc"]  # the tiny vocabulary starts at "!"


def abc(request: Request) -> Script:
    return spelled(ANSWER, FinishReason.LENGTH)


def events_of(response: httpx.Response) -> list[object]:
    """The events of a stream; the last may be the text [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    texts = [block.removeprefix("data: ") for block in blocks]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def test_a_completion(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.post("/v1/completions", json=COMPLETION)
    assert response.status_code == 200
    body = response.json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 3,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_a_chat(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        response = await client.post("/v1/chat/completions", json=CHAT)
    body = response.json()
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    num_prompt = source.requests[0].num_prompt_tokens
    assert num_prompt == len("<User: Hi\nAssistant:")  # the text and the token that starts it
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "abc", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": 3,
            "total_tokens": num_prompt + 3,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


async def test_the_chunks_of_a_completion(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.post("/v1/completions", json=COMPLETION | {"stream": True})
    *chunks, done = events_of(response)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


async def test_the_chunks_of_a_chat_with_usage(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    async with open_api(source) as client:
        response = await client.post("/v1/chat/completions", json=body)
    *chunks, usage, done = events_of(response)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {"content": "c"},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 4 + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk["usage"] is None for chunk in chunks)
    num_prompt = source.requests[0].num_prompt_tokens
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 3,
        "total_tokens": num_prompt + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_times_n_are_requests_that_run_together(
    open_api: OpenApi, stream: bool
) -> None:
    all_started = asyncio.Event()

    def script(request: Request) -> Script:
        if len(source.requests) == 4:
            all_started.set()
        return [all_started, *spelled([ANSWER[0], request.sampling.seed])]

    source = ScriptedSource(script)
    body = COMPLETION | {"prompt": ["Hi", "You"], "n": 2, "seed": 10, "stream": stream}
    async with open_api(source) as client:
        response = await client.post("/v1/completions", json=body)
    texts = ["", "", "", ""]
    if stream:
        *chunks, _ = events_of(response)
        for chunk in chunks:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    else:
        assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
        texts = [choice["text"] for choice in response.json()["choices"]]
        assert response.json()["usage"]["prompt_tokens"] == 3 + 4
        assert response.json()["usage"]["completion_tokens"] == 8
    assert texts == ["a+", "a,", "a+", "a,"]  # seeds 10 and 11 as tokens
    assert [request.num_prompt_tokens for request in source.requests] == [3, 3, 4, 4]


async def test_choices_without_a_seed_draw_different_ones(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        await client.post("/v1/completions", json=COMPLETION | {"n": 4})
    assert len({request.sampling.seed for request in source.requests}) == 4


async def test_parameters_reach_the_sampler(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": -1,
        "stop_token_ids": [5, 6],
        "ignore_eos": True,
        "max_tokens": 9,
    }
    async with open_api(source) as client:
        await client.post("/v1/completions", json=COMPLETION | sampling)
    (request,) = source.requests
    assert request.sampling.temperature == 0.5
    assert request.sampling.top_p == 0.9
    assert request.sampling.top_k == 7
    assert request.sampling.seed == 2**63 - 1
    assert request.sampling.stop_token_ids == (5, 6)
    assert request.sampling.ignore_eos
    assert request.sampling.max_tokens == 9


async def test_defaults_are_16_tokens_for_a_completion_and_all_that_is_left_for_a_chat(
    open_api: OpenApi,
) -> None:
    source = ScriptedSource(abc, max_model_len=100, max_sequence_tokens=90)
    async with open_api(source) as client:
        await client.post("/v1/completions", json={"model": MODEL, "prompt": "Hi"})
        await client.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 80})
        chat = {"model": MODEL, "messages": CHAT["messages"]}
        await client.post("/v1/chat/completions", json=chat)
        await client.post("/v1/chat/completions", json=chat | {"max_completion_tokens": 5})
    short, long, unlimited, limited = source.requests
    assert short.sampling.max_tokens == 16
    assert long.sampling.max_tokens == 90 - 81
    assert unlimited.max_total_tokens == 90
    assert limited.sampling.max_tokens == 5
    assert short.sampling.top_k is None


@pytest.mark.parametrize("prompt", ["Hi", [256, 39, 72]])
@pytest.mark.parametrize("stream", [False, True])
async def test_echo_shows_the_prompt_first(open_api: OpenApi, prompt: object, stream: bool) -> None:
    body = COMPLETION | {"prompt": prompt, "echo": True, "stream": stream, "n": 2}
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.post("/v1/completions", json=body)
    if stream:
        *chunks, _ = events_of(response)
        first = [c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == 1]
        assert "".join(first) == "Hiabc"
    else:
        assert [choice["text"] for choice in response.json()["choices"]] == ["Hiabc"] * 2


async def test_a_stop_string_ends_the_choice(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        response = await client.post("/v1/completions", json=COMPLETION | {"stop": ["b"]})
    (choice,) = response.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("a", "stop")
    assert response.json()["usage"]["completion_tokens"] == 2
    assert len(source.cancelled) == 1


ERRORS = [
    (OverloadedError("full", retry_after_s=2.5), 429, "rate_limit_exceeded"),
    (UnavailableError("no decode worker"), 503, "unavailable"),
    (WorkerLostError("gone"), 503, "worker_lost"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_is_an_http_error(
    open_api: OpenApi, error: PdrayError, status: int, code: str, stream: bool
) -> None:
    async with open_api(ScriptedSource(lambda request: [error])) as client:
        response = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"] == str(error)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


@pytest.mark.parametrize("error", [WorkerLostError("gone"), SlowReaderError("too slow")])
async def test_an_error_after_the_first_token_is_the_last_event(
    open_api: OpenApi, error: PdrayError
) -> None:
    source = ScriptedSource(lambda request: [delta(ANSWER[0]), error])
    async with open_api(source) as client:
        response = await client.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert response.status_code == 200
    chunk, last = events_of(response)
    assert chunk["choices"][0]["text"] == "a"
    assert last["error"]["message"] == str(error)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (COMPLETION | {"model": "other"}, 404, "model", "model_not_found"),
        (COMPLETION | {"prompt": "x" * 200}, 400, "prompt", "context_length_exceeded"),
        (COMPLETION | {"max_tokens": 98}, 400, "max_tokens", "context_length_exceeded"),
        (COMPLETION | {"prompt": ""}, 400, "prompt", None),
        (COMPLETION | {"prompt": [[1], [258]]}, 400, "prompt", None),
        (COMPLETION | {"max_tokens": "8"}, 400, "max_tokens", None),
        (COMPLETION | {"best_of": 3}, 400, "best_of", "unsupported_parameter"),
        (COMPLETION | {"prompt": ["a"] * 100, "n": 3}, 400, "n", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_have_openais_shape_and_the_right_status(
    open_api: OpenApi,
    body: dict[str, object],
    status: int,
    param: str,
    code: str | None,
    stream: bool,
) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        response = await client.post("/v1/completions", json=body | {"stream": stream})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert source.requests == []


async def test_a_chat_that_is_too_long_names_the_chats_own_fields(open_api: OpenApi) -> None:
    long = CHAT | {"messages": [{"role": "user", "content": "x" * 200}]}
    greedy = {"model": MODEL, "messages": CHAT["messages"], "max_completion_tokens": 99}
    async with open_api(ScriptedSource(abc)) as client:
        responses = [await client.post("/v1/chat/completions", json=b) for b in (long, greedy)]
    errors = [response.json()["error"] for response in responses]
    assert [error["param"] for error in errors] == ["messages", "max_completion_tokens"]
    assert {error["code"] for error in errors} == {"context_length_exceeded"}


async def test_a_request_that_kv_memory_could_never_hold_is_refused(open_api: OpenApi) -> None:
    source = ScriptedSource(abc, max_model_len=100, max_sequence_tokens=10)
    async with open_api(source) as client:
        response = await client.post("/v1/completions", json=COMPLETION | {"max_tokens": 9})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "KV memory" in response.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"model": NaN}'])
async def test_a_body_that_is_not_json_is_a_400(open_api: OpenApi, content: bytes) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.post("/v1/completions", content=content)
    assert response.status_code == 400
    assert "accepted: a JSON object" in response.json()["error"]["message"]


async def test_a_too_large_body_is_a_413(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1))
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("GET", "/v1/nothing", 404), ("PUT", "/health", 405)],
)
async def test_wrong_methods_and_paths_have_openais_shape(
    open_api: OpenApi, method: str, path: str, status: int
) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


async def test_our_own_bug_is_a_500_in_openais_shape_and_in_the_log(
    open_api: OpenApi, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: Request) -> Script:
        raise ZeroDivisionError

    async with open_api(ScriptedSource(broken)) as client:
        response = await client.post("/v1/completions", json=COMPLETION)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in caplog.text


async def test_calls_past_the_limit_get_a_429_and_reads_do_not(open_api: OpenApi) -> None:
    go_on = asyncio.Event()
    source = ScriptedSource(lambda request: [go_on, *abc(request)])
    async with open_api(source, max_ongoing=2) as client:
        calls = [
            asyncio.create_task(client.post("/v1/completions", json=COMPLETION)) for _ in range(2)
        ]
        while source.num_open < 2:
            await asyncio.sleep(0)
        refused = await client.post("/v1/completions", json=COMPLETION)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for path in ("/health", "/metrics", "/v1/models"):
            assert (await client.get(path)).status_code == 200
        go_on.set()
        assert [(await call).status_code for call in calls] == [200, 200]
        assert (await client.post("/v1/completions", json=COMPLETION)).status_code == 200


async def test_models_lists_the_one_that_is_served(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        listed = (await client.get("/v1/models")).json()
        one = await client.get(f"/v1/models/{MODEL}")
        other = await client.get("/v1/models/else")
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL]
    assert one.json() == listed["data"][0]
    assert one.json()["max_model_len"] == 100
    assert other.status_code == 404
    assert other.json()["error"]["code"] == "model_not_found"


async def test_health_says_what_is_missing(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        well = await client.get("/health")
        source.is_up = False
        ill = await client.get("/health")
        refused = await client.post("/v1/completions", json=COMPLETION)
    assert (well.status_code, well.json()["status"]) == (200, "ok")
    assert (ill.status_code, ill.json()["missing"]) == (503, "decode worker 0 (loading)")
    assert refused.status_code == 503


async def test_metrics_are_prometheus_text(open_api: OpenApi) -> None:
    async with open_api(ScriptedSource(abc)) as client:
        response = await client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.text == "pdray_up 1\n"


async def test_a_priority_reaches_whoever_places_the_request(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        for body in ({}, {"priority": -3}):
            await client.post("/v1/completions", json=COMPLETION | body)
        refused = await client.post("/v1/completions", json=COMPLETION | {"priority": 0.5})
    assert [request.priority for request in source.requests] == [0, -3]
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "priority")
    assert "an integer of 32 bits" in error["message"]


async def test_a_session_is_named_in_the_body_or_a_header(open_api: OpenApi) -> None:
    source = ScriptedSource(abc)
    async with open_api(source) as client:
        for body, headers in (
            ({}, {}),
            ({"session_id": "s1"}, {}),
            ({}, {"X-Session-Id": "s2"}),
            ({"session_id": "s3"}, {"x-session-id": "s3"}),
        ):
            answer = await client.post("/v1/completions", json=COMPLETION | body, headers=headers)
            assert answer.status_code == 200
        answer = await client.post(
            "/v1/completions", json=COMPLETION | {"session_id": "a"}, headers={"X-Session-Id": "b"}
        )
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "session_id"
        assert "'a'" in error["message"]
        assert "'b'" in error["message"]
        answer = await client.post(
            "/v1/completions", json=COMPLETION, headers={"X-Session-Id": "x" * 257}
        )
        assert answer.status_code == 400
        assert "a string of 1 to 256 characters" in answer.json()["error"]["message"]
    assert [request.session_id for request in source.requests] == [None, "s1", "s2", "s3"]
