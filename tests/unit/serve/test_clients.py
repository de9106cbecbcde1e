"""Real clients of a real uvicorn: openai's own, one that leaves, one that does not read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Callable

import httpx
import openai
import pytest
import pytest_asyncio

from pdray.core.errors import OverloadedError, WorkerLostError
from pdray.core.request import FinishReason, Request
from tests.scripted_source import Script, ScriptedSource, delta, spelled
from tests.unit.serve.conftest import MODEL, OpenServer

ANSWER = [ord(char) - ord("!") for char in "abc"]  # the tiny vocabulary starts at "!"
MESSAGES: list[object] = [{"role": "user", "content": "Hi"}]
ENOUGH_TO_FILL_ALL_BUFFERS = 200_000


def abc(request: Request) -> Script:
    return spelled(ANSWER, FinishReason.LENGTH)


def endless(request: Request) -> Script:
    return [delta(ANSWER[0])] * ENOUGH_TO_FILL_ALL_BUFFERS


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def connect() -> AsyncGenerator[Callable[[str], openai.AsyncOpenAI], None]:
    clients = []

    def make(url: str) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


Connect = Callable[[str], openai.AsyncOpenAI]


async def test_the_openai_client_completes(open_server: OpenServer, connect: Connect) -> None:
    async with open_server(ScriptedSource(abc)) as url:
        client = connect(url)
        answer = await client.completions.create(model=MODEL, prompt="Hi", n=2)
        chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        models = await client.models.list()
    assert [choice.text for choice in answer.choices] == ["abc", "abc"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert chat.choices[0].message.content == "abc"
    assert chat.choices[0].finish_reason == "length"
    assert [model.id for model in models.data] == [MODEL]


async def test_the_openai_client_streams(open_server: OpenServer, connect: Connect) -> None:
    async with open_server(ScriptedSource(abc)) as url:
        client = connect(url)
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        texts = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in texts])
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "abc"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    assert text == "abc"


async def test_the_openai_client_raises_what_the_server_says(
    open_server: OpenServer, connect: Connect
) -> None:
    source = ScriptedSource(lambda request: [OverloadedError("full", retry_after_s=7)])
    async with open_server(source) as url:
        client = connect(url)
        with pytest.raises(openai.RateLimitError, match="full") as full:
            await client.completions.create(model=MODEL, prompt="Hi", stream=True)
        with pytest.raises(openai.NotFoundError, match="other"):
            await client.completions.create(model="other", prompt="Hi")
        with pytest.raises(openai.BadRequestError, match="modalities") as unsupported:
            await client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                modalities=["text", "audio"],
            )
    assert full.value.response.headers["retry-after"] == "7"
    assert unsupported.value.param == "modalities"


async def test_the_openai_client_sees_an_error_in_a_stream(
    open_server: OpenServer, connect: Connect
) -> None:
    source = ScriptedSource(lambda request: [delta(ANSWER[0]), WorkerLostError("gone")])
    async with open_server(source) as url:
        stream = await connect(url).completions.create(model=MODEL, prompt="Hi", stream=True)
        assert (await anext(aiter(stream))).choices[0].text == "a"
        with pytest.raises(openai.APIError, match="gone"):
            [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens_before", [0, 3])
async def test_a_client_that_leaves_cancels_all_its_requests(
    open_server: OpenServer, stream: bool, tokens_before: int
) -> None:
    never = asyncio.Event()
    source = ScriptedSource(lambda request: [*[delta(ANSWER[0])] * tokens_before, never])
    body = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "stream": stream}
    async with open_server(source) as url, httpx.AsyncClient() as client:
        call = asyncio.create_task(client.post(f"{url}/v1/completions", json=body, timeout=None))
        await until(lambda: source.num_yielded == 4 * tokens_before and source.num_open == 4)
        call.cancel()
        await until(lambda: source.num_open == 0)
    assert len(source.cancelled) == 4


def connect_and_post(url: str, body: object) -> socket.socket:
    """A client with the smallest of receive buffers, which sends a request and reads nothing."""
    host, port = url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    sock.sendall(head.encode() + content)
    return sock


async def stalled_at(source: ScriptedSource) -> int:
    """The number of deltas read when no more are."""
    await until(lambda: source.num_yielded > 0)
    while True:
        seen = source.num_yielded
        await asyncio.sleep(0.3)
        if source.num_yielded == seen:
            return seen


async def test_a_client_that_does_not_read_stops_the_generator(open_server: OpenServer) -> None:
    source = ScriptedSource(endless)
    async with open_server(source) as url:
        with connect_and_post(url, {"model": MODEL, "prompt": "a", "stream": True}) as sock:
            stalled = await stalled_at(source)
            assert stalled < ENOUGH_TO_FILL_ALL_BUFFERS / 2
            assert source.num_open == 1
            while source.num_yielded <= stalled:  # reading starts it again
                await asyncio.to_thread(sock.recv, 1 << 16)
        await until(lambda: source.num_open == 0)


async def test_a_client_that_reads_nothing_for_too_long_is_cut(open_server: OpenServer) -> None:
    source = ScriptedSource(endless)
    async with open_server(source, write_s=0.5) as url:
        with connect_and_post(url, {"model": MODEL, "prompt": "a", "stream": True}) as sock:
            await until(lambda: source.num_open == 0 and source.cancelled != [])
            received = await asyncio.to_thread(receive_all, sock)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" not in received


def receive_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


async def test_what_is_ready_together_leaves_in_one_write(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first write of a chat opens it and has its first text; the last has the last text, the
    end, the usage and the end mark."""
    body = {
        "model": MODEL,
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    steps = [asyncio.Event() for _ in ANSWER]

    def one_by_one(request: Request) -> Script:
        return [part for pair in zip(steps, abc(request), strict=True) for part in pair]

    async with open_server(ScriptedSource(one_by_one)) as url, httpx.AsyncClient() as client:
        steps[0].set()
        writes = []
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for piece in response.aiter_raw():
                writes.append(piece.count(b"data: "))
                if len(writes) < len(steps):
                    steps[len(writes)].set()
    assert writes == [2, 1, 4]
