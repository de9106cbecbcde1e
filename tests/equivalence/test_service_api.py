"""The API of ``mode: service`` over HTTP: answers equal those of `pooled`, handles go by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pdray.frontend.text import Tokenizer
from pdray.serve.keys import KeyRing, new_key
from tests.equivalence.conftest import MODEL
from tests.local_cluster import random_prompts
from tests.service import Service, ServiceUrls, running_service, serving_service

PROMPT, LONG = random_prompts([40, 200])
CHAT = [{"role": "user", "content": "Hi there"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
Body = dict[str, Any]


def greedy(**fields: object) -> Body:
    return {"model": MODEL, "temperature": 0, "max_tokens": 9, "ignore_eos": True} | fields


BODIES: dict[str, Body] = {
    "a completion": greedy(prompt=PROMPT),
    "a long one": greedy(prompt=LONG, max_tokens=20),
    "one token": greedy(prompt=PROMPT, max_tokens=1),
    "text": greedy(prompt="Hi"),
    "several prompts": greedy(prompt=[PROMPT, LONG, [5]]),
    "choices": greedy(prompt=PROMPT, n=3, temperature=1, seed=11),
    "a seed": greedy(prompt=PROMPT, temperature=1, seed=5, top_p=0.9, top_k=50),
    "penalties": greedy(prompt=PROMPT, presence_penalty=1, repetition_penalty=1.3),
    "logprobs": greedy(prompt=PROMPT, logprobs=3),
    "an echo": greedy(prompt=PROMPT, echo=True, logprobs=1),
    "a bias": greedy(prompt=PROMPT, logit_bias={"77": 100}),
    "a stop token": greedy(prompt=PROMPT, logit_bias={"77": 100}, stop_token_ids=[77]),
    "a chat": greedy(messages=CHAT),
    "a chat's logprobs": greedy(messages=CHAT, logprobs=True, top_logprobs=2),
    "a form": greedy(messages=CHAT, max_tokens=64, ignore_eos=False)
    | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "prompt logprobs": greedy(prompt=PROMPT, prompt_logprobs=2),
}
STREAMED = [name for name in BODIES if name != "prompt logprobs"]


@pytest.fixture
async def apart(tiny_model_path: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tiny_model_path, tmp_path) as running:
        yield running
        await running.until_idle()


@pytest.fixture
async def urls(apart: Service, tokenizer: Tokenizer) -> AsyncIterator[ServiceUrls]:
    async with serving_service(apart, tokenizer, MODEL) as urls:
        yield urls


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield http


def path_of(body: Body) -> str:
    return "/v1/chat/completions" if "messages" in body else "/v1/completions"


def told(answer: Body) -> Body:
    """An answer less what no two have alike; how much was cached depends on what ran before."""
    kept = {key: value for key, value in answer.items() if key not in ("id", "created")}
    if kept.get("usage"):
        kept["usage"] = {k: v for k, v in kept["usage"].items() if k != "prompt_tokens_details"}
    return kept


def texts_of(stream: str) -> dict[int, str]:
    """By choice: streams may be cut into chunks at other places."""
    texts: dict[int, str] = {}
    for event in stream.split("\n\n"):
        if event.startswith("data: {"):
            for choice in json.loads(event.removeprefix("data: "))["choices"]:
                text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                texts[choice["index"]] = texts.get(choice["index"], "") + text
    assert stream.endswith("data: [DONE]\n\n")
    return texts


@pytest.fixture
async def expected(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> dict[str, Body]:
    """What `pooled` says."""
    answers = {}
    for name, body in BODIES.items():
        url = str(client.base_url).removesuffix("/v1/") + path_of(body)
        answer = await http.post(url, json=body)
        assert answer.status_code == 200, answer.text
        answers[name] = told(answer.json())
    return answers


def expected_texts(answer: Body) -> dict[int, str]:
    return {
        choice["index"]: choice.get("text") or choice.get("message", {}).get("content") or ""
        for choice in answer["choices"]
    }


async def test_openais_endpoints_answer_as_pooled_does(
    urls: ServiceUrls, http: httpx.AsyncClient, expected: dict[str, Body]
) -> None:
    for name, body in BODIES.items():
        answer = await http.post(urls.decode + path_of(body), json=body)
        assert answer.status_code == 200, (name, answer.text)
        assert told(answer.json()) == expected[name], name
    for name in STREAMED:
        body = BODIES[name] | {"stream": True}
        stream = await http.post(urls.decode + path_of(body), json=body)
        assert texts_of(stream.text) == expected_texts(expected[name]), name


async def test_a_handle_carries_a_request_from_prefill_to_decode(
    urls: ServiceUrls, http: httpx.AsyncClient, expected: dict[str, Body]
) -> None:
    for name, body in BODIES.items():
        handle = await handle_of(urls, http, body)
        answer = await http.post(f"{urls.decode}/v1/decode", json={"kv_handle": handle})
        assert answer.status_code == 200, (name, answer.text)
        assert told(answer.json()) == expected[name], name
    for name in STREAMED:
        handle = await handle_of(urls, http, BODIES[name])
        wanted = {"kv_handle": handle, "stream": True}
        stream = await http.post(f"{urls.decode}/v1/decode", json=wanted)
        assert texts_of(stream.text) == expected_texts(expected[name]), name


async def handle_of(
    urls: ServiceUrls, http: httpx.AsyncClient, body: Body, key: str = "none"
) -> str:
    headers = {"Authorization": f"Bearer {key}"}
    answer = await http.post(f"{urls.prefill}/v1/prefill", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    handle: str = answer.json()["kv_handle"]
    return handle


async def test_prefill_tells_the_first_token_and_what_it_used(
    urls: ServiceUrls, http: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    body = greedy(prompt=[PROMPT, LONG], n=2)
    answer = (await http.post(f"{urls.prefill}/v1/prefill", json=body)).json()
    assert answer["object"] == "prefill"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice in answer["choices"]:
        assert choice["text"] == tokenizer.decode(choice["token_ids"])
        assert choice["finish_reason"] is None
    assert answer["usage"]["prompt_tokens"] == 240
    assert answer["usage"]["completion_tokens"] == 4
    released = await http.post(
        f"{urls.prefill}/v1/prefill/release", json={"kv_handle": answer["kv_handle"]}
    )
    assert released.json() == {"object": "prefill.released"}


async def test_the_stream_that_a_request_asked_for_is_what_decode_sends(
    urls: ServiceUrls, http: httpx.AsyncClient
) -> None:
    body = greedy(prompt=PROMPT, stream=True, stream_options={"include_usage": True})
    handle = await handle_of(urls, http, body)
    stream = await http.post(f"{urls.decode}/v1/decode", json={"kv_handle": handle})
    assert stream.headers["content-type"].startswith("text/event-stream")
    *_, last, _ = stream.text.rstrip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["usage"]["completion_tokens"] == 9
    handle = await handle_of(urls, http, body)
    whole = await http.post(f"{urls.decode}/v1/decode", json={"kv_handle": handle, "stream": False})
    assert whole.json()["usage"]["completion_tokens"] == 9


async def test_handles_that_cannot_be_used_are_told_apart(
    apart: Service, tokenizer: Tokenizer, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    (ours, entry), (theirs, other) = new_key("ours"), new_key("theirs")
    path.write_text(f"{entry.line}\n{other.line}\n")
    async with serving_service(apart, tokenizer, MODEL, KeyRing(path)) as urls:

        async def use(handle: str, key: str, at: str = "decode") -> tuple[int, str | None]:
            base = urls.decode if at == "decode" else urls.prefill
            headers = {"Authorization": f"Bearer {key}"}
            answer = await http.post(f"{base}/v1/{at}", json={"kv_handle": handle}, headers=headers)
            error = answer.json().get("error", {})
            return answer.status_code, error.get("code")

        handle = await handle_of(urls, http, greedy(prompt=PROMPT), ours)
        forged = handle[:-1] + ("A" if handle[-1] != "A" else "B")
        for at in ("decode", "prefill/renew", "prefill/release"):
            assert await use(handle, "pdray-nobody", at) == (401, "invalid_api_key")
            assert await use(forged, ours, at) == (400, "invalid_kv_handle")
            assert await use(handle, theirs, at) == (403, "foreign_kv_handle")
        assert await use(handle, ours) == (200, None)
        for at in ("decode", "prefill/renew", "prefill/release"):
            assert await use(handle, ours, at) == (409, "used_kv_handle")

        client = openai.AsyncOpenAI(base_url=f"{urls.decode}/v1", api_key=ours, max_retries=0)
        async with client:
            answer = await client.completions.create(model=MODEL, prompt="Hi", max_tokens=4)
            assert answer.usage is not None
            assert answer.usage.completion_tokens <= 4
            with pytest.raises(openai.BadRequestError, match="max_tokens"):
                await client.completions.create(model=MODEL, prompt="Hi", max_tokens=100_000)


async def test_a_handle_can_be_renewed_and_expires(
    tiny_model_path: Path, tmp_path: Path, tokenizer: Tokenizer, http: httpx.AsyncClient
) -> None:
    handles = {"handles": {"lease_s": 1.0}}
    async with (
        running_service(tiny_model_path, tmp_path, prefill=handles) as service,
        serving_service(service, tokenizer, MODEL) as urls,
    ):
        expiring = await handle_of(urls, http, greedy(prompt=LONG))
        handle = await handle_of(urls, http, greedy(prompt=PROMPT))
        (worker,) = service.prefill.workers
        num_held = worker.snapshot().num_held_blocks
        while worker.snapshot().num_held_blocks == num_held:
            renewed = await http.post(
                f"{urls.prefill}/v1/prefill/renew", json={"kv_handle": handle}
            )
            assert renewed.status_code == 200, renewed.text
            handle = renewed.json()["kv_handle"]
            await asyncio.sleep(0.1)
        for url in (f"{urls.decode}/v1/decode", f"{urls.prefill}/v1/prefill/renew"):
            answer = await http.post(url, json={"kv_handle": expiring})
            assert answer.status_code == 410, answer.text
            assert answer.json()["error"]["code"] == "expired_kv_handle"
        answer = await http.post(f"{urls.decode}/v1/decode", json={"kv_handle": handle})
        assert answer.status_code == 200, answer.text
        await service.until_idle()


async def test_a_client_that_leaves_leaves_no_kv(
    tiny_model_path: Path, tmp_path: Path, tokenizer: Tokenizer, http: httpx.AsyncClient
) -> None:
    """Nobody hears of a handle that was under way when its client left: that one runs out."""
    handles = {"handles": {"lease_s": 2.0}}
    async with (
        running_service(tiny_model_path, tmp_path, prefill=handles) as service,
        serving_service(service, tokenizer, MODEL) as urls,
    ):
        for number in range(12):
            body = greedy(prompt=LONG, max_tokens=200, stream=bool(number % 2))
            call = asyncio.create_task(http.post(f"{urls.decode}/v1/completions", json=body))
            await asyncio.sleep(0.02 * number)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await service.until_idle()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "accepted: a JSON object"),
        (greedy(prompt="Hi", messages=CHAT), "messages together with prompt"),
        (greedy(), "prompt is missing"),
        (greedy(prompt="Hi", max_tokens=0), "max_tokens = 0"),
        (greedy(prompt="Hi", model="other"), "'other' is not served here"),
        (greedy(prompt=[5] * 600), "context is 512 tokens"),
    ],
)
async def test_bodies_that_cannot_be_are_refused_by_prefill(
    urls: ServiceUrls, http: httpx.AsyncClient, body: Body, words: str
) -> None:
    answer = await http.post(f"{urls.prefill}/v1/prefill", json=body)
    assert answer.status_code in (400, 404)
    assert words in answer.json()["error"]["message"]
