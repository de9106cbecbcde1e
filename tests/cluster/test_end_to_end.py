"""The real server with the real model, under the real ``openai`` client."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from pdray.frontend.text import Tokenizer
from pdray.serve.free_port import free_port
from tests.equivalence.reference import NEAR_TIE, Reference, ReferenceTokens
from tests.promql import asked, queries
from tests.readme import commands_with
from tests.served import ROOT, Served, served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "gemma-3-270m"
NUM_OUTPUT_TOKENS = 16
WORDS = [
    "the",
    "sea",
    "a",
    "mountain",
    "where",
    "of",
    "little",
    "rain",
    "is",
    "7",
    "München",
    "日本",
    "and",
    "left",
    "again",
]


@dataclass(frozen=True, slots=True)
class Demo:
    """The server, and a client of the test's own event loop."""

    server: Served
    client: openai.AsyncOpenAI

    def scrape(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.server.port}/metrics", timeout=30).text

    def metric(self, pattern: str) -> float:
        """The sum of all samples that match."""
        lines = re.findall(rf"^{pattern} (\S+)$", self.scrape(), re.MULTILINE)
        assert lines, f"no sample matches {pattern}"
        return sum(float(value) for value in lines)


@pytest.fixture(scope="module")
def server(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    config["serve"]["port"] = free_port()
    path = tmp_path_factory.mktemp("demo") / "demo.yaml"
    path.write_text(yaml.safe_dump(config))
    with served(path) as server:
        server.ready_line()
        yield server


@pytest.fixture
async def demo(server: Served) -> AsyncIterator[Demo]:
    base_url = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield Demo(server, client)


def prompt_of(num_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


async def stream_text(demo: Demo, prompt: str, max_tokens: int) -> str:
    stream = await demo.client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
        timeout=600,
    )
    text = ""
    usage = None
    async for chunk in stream:
        text += "".join(choice.text for choice in chunk.choices)
        usage = chunk.usage or usage
    assert usage is not None
    assert usage.completion_tokens == max_tokens
    return text


def assert_same_text(text: str, reference: ReferenceTokens, tokenizer: Tokenizer) -> bool:
    """False where the reference nearly tied, and the text went the other way there."""
    if text == tokenizer.decode(reference.token_ids):
        return True
    for position in range(len(reference.token_ids)):
        # A character may span tokens: what is not whole yet is no difference.
        start = tokenizer.decode(reference.token_ids[: position + 1]).rstrip("\ufffd")
        if not text.startswith(start):
            assert min(reference.gaps[: position + 1]) < NEAR_TIE, (text, start)
            return False
    raise AssertionError((text, tokenizer.decode(reference.token_ids)))


async def test_32_streams_of_mixed_lengths_equal_the_reference(
    demo: Demo, demo_model_path: Path
) -> None:
    lengths = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 300, 350, 400, 600] * 2
    prompts = [prompt_of(length, seed) for seed, length in enumerate(lengths)]
    texts = await asyncio.gather(*(stream_text(demo, p, NUM_OUTPUT_TOKENS) for p in prompts))
    tokenizer, reference = Tokenizer(demo_model_path), Reference(demo_model_path)
    token_ids = [await tokenizer.encode(prompt) for prompt in prompts]
    references = reference.generate_all(token_ids, NUM_OUTPUT_TOKENS)
    num_equal = sum(
        assert_same_text(text, expected, tokenizer)
        for text, expected in zip(texts, references, strict=True)
    )
    print(f"{num_equal} of {len(texts)} equal, the others after a near tie of the reference")
    assert num_equal >= 30
    assert demo.metric(r'pdray_kv_transfer_bytes_total\{.*transport="nixl".*\}') > 0


async def test_200_requests_a_third_of_them_cancelled_leave_no_block_held(demo: Demo) -> None:
    rng = random.Random(0)
    in_flight = asyncio.Semaphore(24)

    async def one(number: int) -> None:
        async with in_flight:
            prompt = prompt_of(rng.randrange(1, 120), number)
            running = asyncio.create_task(stream_text(demo, prompt, 4))
            if number % 3:
                await running
                return
            await asyncio.sleep(rng.uniform(0.0, 3.0))
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    await asyncio.gather(*(one(number) for number in range(200)))
    for _ in range(200):
        held = demo.metric(r'pdray_kv_blocks\{.*state="(?:held|quarantined)".*\}')
        in_flight_now = demo.metric(r"pdray_num_requests_in_flight\{.*\}")
        if held == in_flight_now == 0:
            break
        await asyncio.sleep(0.1)
    assert held == in_flight_now == 0
    assert demo.metric(r'pdray_requests_total\{outcome="failed".*\}') == 0
    assert demo.metric(r'pdray_requests_total\{outcome="cancelled".*\}') > 0


async def test_the_second_turn_of_a_conversation_computes_only_what_is_new(
    demo: Demo, demo_model_path: Path
) -> None:
    turns: list[Any] = [{"role": "user", "content": prompt_of(120, 77)}]
    first = await answer_of(demo, turns)
    assert cached_tokens(first) == 0
    turns += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    second = await answer_of(demo, turns)
    assert first.usage.prompt_tokens > cached_tokens(second) >= first.usage.prompt_tokens // 2
    cold = await answer_of(demo, turns, cache_salt="another tenant")
    assert cached_tokens(cold) == 0
    tokenizer, reference = Tokenizer(demo_model_path), Reference(demo_model_path)
    expected = reference.generate(await tokenizer.chat(turns), NUM_OUTPUT_TOKENS)
    for answer in (second, cold):
        assert_same_text(answer.choices[0].message.content, expected, tokenizer)


async def answer_of(demo: Demo, turns: list[Any], **ours: object) -> Any:
    return await demo.client.chat.completions.create(
        model=MODEL,
        messages=turns,
        max_tokens=NUM_OUTPUT_TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True, **ours},
        timeout=600,
    )


def cached_tokens(answer: Any) -> int:
    count: int = answer.usage.prompt_tokens_details.cached_tokens
    return count


async def test_one_scrape_shows_the_ingress_and_both_workers(demo: Demo) -> None:
    await stream_text(demo, "The capital of France is", 4)
    scrape = demo.scrape()
    for sample in [
        r'pdray_requests_total\{outcome="length",replica=',
        r"pdray_time_to_first_token_seconds_count\{replica=",
        r'pdray_kv_blocks\{pool="prefill",state="free",worker_id=',
        r'pdray_kv_blocks\{pool="decode",state="free",worker_id=',
        r"pdray_num_requests_queued ",
    ]:
        assert re.search(sample, scrape), sample
    assert scrape.count("# TYPE pdray_kv_blocks gauge") == 1
    exported = set(re.findall(r"^# TYPE (\S+)", scrape, re.MULTILINE))
    wanted = {each.metric for query in queries() for each in asked(query)}
    assert {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in wanted} <= exported


async def test_errors_are_openais(demo: Demo) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        await demo.client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="4096"):
        await demo.client.completions.create(model=MODEL, prompt="a " * 5000)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await demo.client.completions.create(model=MODEL, prompt="a", max_tokens=-1)
    with pytest.raises(openai.BadRequestError, match="prompt"):
        await demo.client.completions.create(model=MODEL, prompt=[])


async def test_the_readmes_requests_are_answered(demo: Demo) -> None:
    complete, metrics = commands_with("curl")
    outputs = []
    for command in (complete, metrics):
        shell = await asyncio.create_subprocess_shell(
            command.replace("127.0.0.1:8000", f"127.0.0.1:{demo.server.port}"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        output, _ = await shell.communicate()
        outputs.append(output.decode())
    answer = json.loads(outputs[0])
    assert answer["choices"][0]["text"].startswith(" the capital of the country of France.")
    assert re.search(r'pdray_kv_transfer_bytes_total\{.*transport="nixl".*\} \d', outputs[1])
