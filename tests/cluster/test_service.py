"""Two applications under Ray Serve: one is deployed anew, scaled and rolled back while requests run
through both, and none fails."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from ray import serve

from pdray.cluster.launch import down
from pdray.config import PdrayConfig, parse_config
from pdray.serve.app import build_app
from pdray.serve.free_port import free_port
from tests.cluster.conftest import processes_of, until_ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "tiny"
BODY: dict[str, Any] = {
    "model": MODEL,
    "prompt": [7, 8, 9] * 40,
    "max_tokens": 24,
    "temperature": 0,
}
NUM_CLIENTS = 6


@pytest.fixture(scope="module")
def port(local_ray: None) -> Iterator[int]:
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    for name in ("apart-prefill", "apart-decode"):
        serve.delete(name)
    serve.shutdown()


class Apart:
    """Both applications, with what is changed in either."""

    def __init__(self, model_path: Path, secret_file: Path, port: int) -> None:
        secret_file.write_text(os.urandom(32).hex())
        self._model_path = model_path
        self._secret_file = secret_file
        self._port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def config(
        self,
        phase: str,
        *,
        replicas: int = 1,
        served: dict[str, object] | None = None,
        **engine: int,
    ) -> PdrayConfig:
        settings = {"kv_cache_bytes": "8MiB", "num_threads": 1, "max_model_len": 1024} | engine
        is_decode = phase == "decode"
        pool = {"role": phase, "replicas": replicas, "node_groups": ["laptop"], "engine": settings}
        return parse_config(
            {
                "model": str(self._model_path),
                "served_model_name": MODEL,
                "mode": "service",
                "node_groups": {"laptop": {"resources_per_worker": {"CPU": 0.5}}},
                "pools": {phase: pool},
                "controller": {"worker_lease_s": 30.0, "unused_exit_s": 5.0},
                "handles": {"secret_file": str(self._secret_file), "lease_s": 300.0},
                "serve": {"application": f"apart-{phase}"}
                | ({"prefill_url": f"{self.url}/prefill"} if is_decode else {})
                | (served or {}),
            }
        )

    async def deploy(self, config: PdrayConfig) -> None:
        application = build_app({"config": config.model_dump(mode="json")})
        name = config.serve.application
        prefix = "/prefill" if "prefill" in name else "/"
        await asyncio.to_thread(serve.run, application, name=name, route_prefix=prefix)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @asynccontextmanager
    async def load(self, expected: str) -> AsyncIterator[list[int]]:
        """Clients that ask without a pause, half of them for streams. Every answer is the one
        expected; the list counts them."""
        counts, is_over = [0], asyncio.Event()

        async def ask_on(client: openai.AsyncOpenAI, *, stream: bool) -> None:
            while not is_over.is_set():
                assert await text_of(client, stream=stream) == expected
                counts[0] += 1

        async with self.client() as client, asyncio.TaskGroup() as tasks:
            for number in range(NUM_CLIENTS):
                tasks.create_task(ask_on(client, stream=number % 2 == 0))
            yield counts
            is_over.set()


async def text_of(client: openai.AsyncOpenAI, *, stream: bool = False) -> str:
    extra = {"ignore_eos": True}
    if not stream:
        return (await client.completions.create(**BODY, extra_body=extra)).choices[0].text
    chunks = await client.completions.create(**BODY, stream=True, extra_body=extra)
    return "".join([chunk.choices[0].text async for chunk in chunks])


async def more_answers(counts: list[int]) -> None:
    enough = counts[0] + 2 * NUM_CLIENTS
    while counts[0] < enough:
        await asyncio.sleep(0.05)


def workers_of(application: str) -> dict[str, psutil.Process]:
    found = processes_of(application)
    return {name: process for name, process in found.items() if ":worker:" in name}


async def test_prefill_is_deployed_anew_scaled_and_rolled_back_and_no_request_fails(
    port: int, tiny_model_path: Path, tmp_path: Path
) -> None:
    apart = Apart(tiny_model_path, tmp_path / "secret", port)
    first = apart.config("prefill")
    decode = apart.config("decode")
    try:
        await apart.deploy(first)
        await apart.deploy(decode)
        async with apart.client() as client, httpx.AsyncClient(timeout=60) as http:
            expected = await text_of(client)
            answer = await http.post(f"{apart.url}/prefill/v1/prefill", json=BODY)
            assert answer.status_code == 200, answer.text
            handle = answer.json()["kv_handle"]
            old_workers = workers_of("apart-prefill")
            async with apart.load(expected) as counts:
                await more_answers(counts)
                await apart.deploy(apart.config("prefill", replicas=2, max_tokens_per_step=256))
                await more_answers(counts)
                assert len(workers_of("apart-prefill")) == 3
                # The old generation has a prompt that nobody has come for yet.
                answer = await http.post(f"{apart.url}/v1/decode", json={"kv_handle": handle})
                assert answer.status_code == 200, answer.text
                await until_ended(old_workers.values())
                await more_answers(counts)
                await apart.deploy(first)
                await more_answers(counts)
                await apart.deploy(apart.config("decode", served={"slow_reader_tokens": 2048}))
                await more_answers(counts)
    finally:
        for config in (first, decode):
            await asyncio.to_thread(serve.delete, config.serve.application)
            await asyncio.to_thread(down, config)
