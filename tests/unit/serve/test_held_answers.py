"""Answers of a given form and tool calls: the openai client, the API and real workers, whose
requests pass from prefill to decode with their grammars."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from pdray.core.placement import ServingLimits
from pdray.core.request import Request
from pdray.frontend.text import Tokenizer
from pdray.frontend.token_stream import TokenDelta
from pdray.local import LocalCluster
from tests.local_cluster import config_of, until_idle
from tests.unit.serve.conftest import MODEL, OpenServer

COMPACT = {"x-guidance": {"whitespace_flexible": False}}
FAR = {"type": "integer", "minimum": 0, "maximum": 99}
SHORT = {
    "type": "object",
    "properties": {"at": {"type": "string", "maxLength": 4}, "far": FAR},
    "required": ["at"],
    "additionalProperties": False,
} | COMPACT
DISTANCE = {
    "type": "object",
    "properties": {"far": FAR},
    "required": ["far"],
    "additionalProperties": False,
} | COMPACT
LOOK = {"type": "function", "function": {"name": "look", "parameters": SHORT}}
GO = {"type": "function", "function": {"name": "go", "description": "Goes."}}
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
SEEDS = range(4)


class ClusterSource:
    """A local cluster, as the API's source of tokens."""

    is_up = True

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    async def limits(self) -> ServingLimits:
        return await self._cluster.controller.limits()

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        return self._cluster.frontend.generate(request)


@pytest_asyncio.fixture
async def client(
    open_server: OpenServer, tiny_model_path: Path, tokenizer: Tokenizer
) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    engine = {"kv_cache_bytes": "16MiB", "max_tokens_per_step": 512, "max_model_len": 2048}
    config = config_of(tiny_model_path, prefill=engine, decode=engine)
    async with LocalCluster(config, tiny_model_path) as cluster:
        async with (
            open_server(ClusterSource(cluster)) as url,
            openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=240
            ) as client,
        ):
            yield client
        await until_idle(cluster)


async def create(client: openai.AsyncOpenAI, seed: int, **fields: Any) -> Any:
    return await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, seed=seed, max_tokens=400, **fields
    )


async def test_response_formats(client: openai.AsyncOpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SHORT}}
    for seed in SEEDS:
        answer = await create(client, seed, response_format=schema)
        jsonschema.validate(json.loads(answer.choices[0].message.content), SHORT)
        assert answer.choices[0].finish_reason == "stop"
        stream = await create(client, seed, response_format=schema, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == answer.choices[0].message.content


async def test_structured_outputs(client: openai.AsyncOpenAI) -> None:
    texts = {"regex": set(), "choice": set(), "grammar": set()}  # type: ignore[var-annotated]
    rules = {"regex": "[a-c]{3}-[0-9]", "choice": ["yes", "no"], "grammar": 'start: "a"{2,4} "b"'}
    for seed in SEEDS:
        for kind, rule in rules.items():
            answer = await client.completions.create(
                model=MODEL,
                prompt="Hi",
                seed=seed,
                max_tokens=50,
                extra_body={"structured_outputs": {kind: rule}},
            )
            texts[kind].add(answer.choices[0].text)
    assert all(re.fullmatch("[a-c]{3}-[0-9]", text) for text in texts["regex"])
    assert texts["choice"] <= {"yes", "no"}
    assert all(re.fullmatch("a{2,4}b", text) for text in texts["grammar"])


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"look", "go"}), ({"type": "function", "function": {"name": "look"}}, {"look"})],
    ids=["required", "named"],
)
async def test_required_calls_are_calls(
    client: openai.AsyncOpenAI, choice: Any, names: set[str]
) -> None:
    fields = {"tools": [LOOK, GO], "tool_choice": choice, "parallel_tool_calls": False}
    for seed in SEEDS:
        answer = await create(client, seed, **fields)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        assert call.id.startswith("call_")
        assert call.function.name in names
        arguments = json.loads(call.function.arguments)
        if call.function.name == "look":
            jsonschema.validate(arguments, SHORT)
        else:
            assert arguments == {}
        streamed = await streamed_call(await create(client, seed, stream=True, **fields))
        assert streamed == (call.function.name, call.function.arguments)


async def test_with_auto_an_answer_is_calls_or_follows_the_schema(
    client: openai.AsyncOpenAI,
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "far", "schema": DISTANCE}}
    fields = {
        "response_format": schema,
        "tools": [LOOK],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }
    kinds = set()
    for seed in range(12):
        answer = (await create(client, seed, **fields)).choices[0]
        kinds.add(answer.finish_reason)
        if answer.finish_reason == "tool_calls":
            (call,) = answer.message.tool_calls
            assert answer.message.content is None
            jsonschema.validate(json.loads(call.function.arguments), SHORT)
            streamed = await streamed_call(await create(client, seed, stream=True, **fields))
            assert streamed == (call.function.name, call.function.arguments)
        else:
            assert answer.message.tool_calls is None
            jsonschema.validate(json.loads(answer.message.content), DISTANCE)
            stream = await create(client, seed, stream=True, **fields)
            deltas = [chunk.choices[0].delta async for chunk in stream]
            assert "".join(delta.content or "" for delta in deltas) == answer.message.content
            assert not any(delta.tool_calls for delta in deltas)
    assert kinds == {"tool_calls", "stop"}


async def streamed_call(stream: Any) -> tuple[str, str]:
    name, arguments, reasons = "", "", []
    async for chunk in stream:
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or ():
            assert call.index == 0
            if call.function.name is not None:
                assert name == arguments == ""
                assert call.id.startswith("call_")
                assert call.type == "function"
                name = call.function.name
            arguments += call.function.arguments
    assert reasons[-1] == "tool_calls"
    assert not any(reasons[:-1])
    return name, arguments


async def test_several_calls_may_be_made_unless_forbidden(client: openai.AsyncOpenAI) -> None:
    counts = set()
    for seed in range(8):
        answer = await create(client, seed, tools=[GO], tool_choice="required")
        counts.add(len(answer.choices[0].message.tool_calls))
    assert max(counts) > 1


async def test_a_chat_goes_on_after_its_calls(client: openai.AsyncOpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    with_tools = await client.chat.completions.create(
        model=MODEL, messages=history, tools=[LOOK], max_tokens=5
    )
    without = await client.chat.completions.create(model=MODEL, messages=history, max_tokens=5)
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens > 50
    assert without.choices[0].message.tool_calls is None


class Place(BaseModel):
    is_far: bool
    size: int | None


async def test_the_clients_own_parsing(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Place, max_tokens=600, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Place)


NO_OBJECT = {"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}
BAD = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "king"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": BAD}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"grammar": "start: x"}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"json": {}, "regex": "a"}}}, "structured_outputs"),
        ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"tools": [GO, GO]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [GO], "tool_choice": LOOK}, "tool_choice"),
        ({"tools": [NO_OBJECT], "tool_choice": "required"}, "tools[0].function.parameters"),
        (
            {"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}},
            "ignore_eos",
        ),
    ],
)
async def test_what_cannot_be_held_is_refused_by_name(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await create(client, 0, **fields)
    assert refused.value.param == param
