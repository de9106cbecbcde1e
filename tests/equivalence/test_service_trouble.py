"""What OpenAI's endpoints make of a prefill application that ends, refuses or loses what it had."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request, Response

from pdray.core.errors import UnavailableError
from pdray.frontend.text import Tokenizer
from pdray.serve.composition import MAX_TRIES
from pdray.serve.free_port import free_port
from pdray.serve.prefill_client import PrefillClient
from tests.equivalence.conftest import MODEL
from tests.local_cluster import random_prompts
from tests.service import Service, running_service, serving_service

(PROMPT,) = random_prompts([40])
BODY: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "temperature": 0}
EXTRA = {"extra_body": {"ignore_eos": True}}


@dataclass
class Trouble:
    """Stands before a real prefill application. ``steps`` say what becomes of its next answers:
    a status and body in place of one, or ``lose``, an answer whose KV has been released; after
    them all goes well."""

    steps: list[Response | str]
    num_asked: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, prefill_url: str) -> FastAPI:
        api = FastAPI()

        @api.post("/v1/prefill")
        async def prefill(request: Request) -> Response:
            self.num_asked += 1
            self.bodies.append(await request.json())
            step = self.steps.pop(0) if self.steps else None
            if isinstance(step, Response):
                return step
            async with httpx.AsyncClient() as http:
                answer = await http.post(f"{prefill_url}/v1/prefill", json=self.bodies[-1])
                if step == "lose":
                    handle = {"kv_handle": answer.json()["kv_handle"]}
                    await http.post(f"{prefill_url}/v1/prefill/release", json=handle)
            return Response(answer.content, answer.status_code)

        return api


@pytest.fixture
async def apart(tiny_model_path: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with running_service(tiny_model_path, tmp_path) as running:
        yield running
        await running.until_idle()


Ask = Callable[[openai.AsyncOpenAI, float | None], Any]


async def whole(client: openai.AsyncOpenAI, temperature: float | None = None) -> str:
    body = BODY if temperature is None else BODY | {"temperature": temperature}
    return (await client.completions.create(**body, **EXTRA)).choices[0].text


async def streamed(client: openai.AsyncOpenAI, temperature: float | None = None) -> str:
    body = BODY if temperature is None else BODY | {"temperature": temperature}
    stream = await client.completions.create(**body, stream=True, **EXTRA)
    return "".join([chunk.choices[0].text async for chunk in stream])


@pytest.fixture(params=[whole, streamed])
def ask(request: pytest.FixtureRequest) -> Ask:
    asking: Ask = request.param
    return asking


async def with_trouble(
    apart: Service, tokenizer: Tokenizer, trouble: Trouble, ask: Ask, temperature: float
) -> str:
    async with (
        serving_service(apart, tokenizer, MODEL, between=trouble) as urls,
        openai.AsyncOpenAI(base_url=f"{urls.decode}/v1", api_key="none", max_retries=0) as client,
    ):
        text: str = await ask(client, temperature)
        return text


def unavailable() -> Response:
    return Response(b"no healthy upstream", 503)


async def test_one_that_is_being_replaced_is_asked_again(
    apart: Service, tokenizer: Tokenizer, ask: Ask
) -> None:
    trouble = Trouble([unavailable(), Response(status_code=502)])
    text = await with_trouble(apart, tokenizer, trouble, ask, 0)
    assert trouble.num_asked == 3
    assert text == await with_trouble(apart, tokenizer, Trouble([]), ask, 0)


async def test_a_handle_that_was_lost_costs_time_only(
    apart: Service, tokenizer: Tokenizer, ask: Ask
) -> None:
    trouble = Trouble(["lose"] * (MAX_TRIES - 1))
    await with_trouble(apart, tokenizer, trouble, ask, 1)
    assert trouble.num_asked == MAX_TRIES
    # What is drawn is drawn from one seed, whoever draws it again.
    assert len({body["seed"] for body in trouble.bodies}) == 1


async def test_one_that_loses_all_is_not_asked_for_ever(
    apart: Service, tokenizer: Tokenizer, ask: Ask
) -> None:
    trouble = Trouble(["lose"] * MAX_TRIES)
    with pytest.raises(openai.ConflictError) as refused:
        await with_trouble(apart, tokenizer, trouble, ask, 0)
    assert refused.value.code == "used_kv_handle"
    assert trouble.num_asked == MAX_TRIES


async def test_its_refusals_are_passed_on(apart: Service, tokenizer: Tokenizer, ask: Ask) -> None:
    body = b'{"error": {"message": "full", "type": "t", "param": null, "code": "c"}}'
    full = Response(body, 429, headers={"retry-after": "7"})
    with pytest.raises(openai.RateLimitError, match="full") as refused:
        await with_trouble(apart, tokenizer, Trouble([full]), ask, 0)
    assert refused.value.response.headers["retry-after"] == "7"
    assert refused.value.code == "c"
    strange = Trouble([Response(b"<html>", 404)])
    with pytest.raises(openai.NotFoundError, match="answered 404: <html>"):
        await with_trouble(apart, tokenizer, strange, ask, 0)


async def test_where_nobody_answers_the_url_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}/prefill"
    client = PrefillClient(url, give_up_after_s=0.3)
    with pytest.raises(UnavailableError, match=f"application at {url} does not answer"):
        await client.prefill(BODY, None)
