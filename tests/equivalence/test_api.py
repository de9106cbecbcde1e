"""Texts, ends and refusals as the openai client gets them from prefill and decode apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from pdray.frontend.text import Tokenizer
from pdray.local import LocalCluster
from pdray.serve.batch import BatchRun
from pdray.serve.completion import CompletionService
from tests.equivalence.conftest import MODEL
from tests.local_cluster import random_prompts, until_idle

GREEDY = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}

Reference = Callable[[list[int], int], str]


@pytest.fixture(scope="module")
def reference(tiny_model_path: Path, tokenizer: Tokenizer) -> Reference:
    """The text of transformers' own greedy tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32)

    def generate(prompt: list[int], max_tokens: int) -> str:
        output = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=max_tokens,
            max_new_tokens=max_tokens,
        )
        return tokenizer.decode(output[0, len(prompt) :].tolist())

    return generate


async def streamed_text(
    client: openai.AsyncOpenAI, prompt: list[int], max_tokens: int
) -> tuple[str, str | None, int]:
    """Text, finish reason and completion tokens."""
    stream = await client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=max_tokens,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    text, finish_reason, num_tokens = "", None, 0
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.text
            finish_reason = choice.finish_reason
        if chunk.usage:
            num_tokens = chunk.usage.completion_tokens
    return text, finish_reason, num_tokens


async def test_32_streams_of_mixed_lengths_have_the_references_text(
    client: openai.AsyncOpenAI, reference: Reference
) -> None:
    prompts = random_prompts([1 + 11 * index for index in range(32)])
    lengths = [1 + 3 * index % 40 for index in range(32)]
    streams = await asyncio.gather(
        *(streamed_text(client, p, n) for p, n in zip(prompts, lengths, strict=True))
    )
    for prompt, length, (text, finish_reason, num_tokens) in zip(
        prompts, lengths, streams, strict=True
    ):
        assert text == reference(prompt, length)
        assert finish_reason == "length"
        assert num_tokens == length


async def test_whole_streamed_and_batched_answers_agree(
    client: openai.AsyncOpenAI,
    service: CompletionService,
    reference: Reference,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    prompt = "The capital of France is"
    prompt_ids = await tokenizer.encode(prompt)
    expected = reference(prompt_ids, 24)
    whole = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, **GREEDY)
    assert whole.choices[0].text == expected
    assert (await streamed_text(client, prompt_ids, 24))[0] == expected
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt_ids)

    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    line = {"custom_id": "a", "url": "/v1/completions", "body": body | {"ignore_eos": True}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    batch = BatchRun(service, max_in_flight=8, give_up_after_s=60, on_change=lambda counts: None)
    await batch.run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    answer = json.loads((tmp_path / "out.jsonl").read_text())
    assert answer["response"]["body"]["choices"][0]["text"] == expected


async def test_a_seed_gives_the_same_choices_again_and_each_its_own(
    client: openai.AsyncOpenAI,
) -> None:
    async def texts() -> list[str]:
        answer = await client.completions.create(
            model=MODEL, prompt="Hi", max_tokens=20, n=3, seed=5, extra_body={"ignore_eos": True}
        )
        return [choice.text for choice in answer.choices]

    first = await texts()
    assert first == await texts()
    assert len(set(first)) == 3


async def test_a_stop_string_ends_the_text_and_frees_the_blocks(
    client: openai.AsyncOpenAI, cluster: LocalCluster, reference: Reference
) -> None:
    (prompt,) = random_prompts([50])
    text = reference(prompt, 200)
    stop = text[40:44]
    answer = await client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=200, stop=stop, **GREEDY
    )
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 200
    await until_idle(cluster)


async def test_a_stop_token_is_counted_and_not_shown(
    client: openai.AsyncOpenAI, reference: Reference, tokenizer: Tokenizer
) -> None:
    (prompt,) = random_prompts([50], seed=3)
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=30, **GREEDY)
    shown = answer.choices[0].text
    for token_id in range(256):
        if tokenizer.decode([token_id]) == shown[5]:
            break
    stopped = await client.completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=30,
        temperature=0.0,
        extra_body={"ignore_eos": True, "stop_token_ids": [token_id]},
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage is not None
    before = tokenizer.decode([token_id])
    assert before not in stopped.choices[0].text
    assert shown.startswith(stopped.choices[0].text)


async def test_a_client_that_leaves_frees_the_blocks_on_both_sides(
    client: openai.AsyncOpenAI, cluster: LocalCluster
) -> None:
    async def leave_after(num_chunks: int, prompt: list[int]) -> None:
        stream = await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=300, stream=True, **GREEDY
        )
        for _ in range(num_chunks):
            with suppress(StopAsyncIteration):
                await anext(aiter(stream))
        await stream.close()

    prompts = random_prompts([20 * (1 + index % 8) for index in range(16)])
    await asyncio.gather(*(leave_after(index % 5, p) for index, p in enumerate(prompts)))
    await until_idle(cluster)
    assert cluster.plane.num_in_flight == 0


async def test_refusals_of_the_real_thing(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model=MODEL, prompt=[5] * 600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model=MODEL, prompt=[5], max_tokens=1000)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="token id 1000000; accepted: 0 to 257"):
        await client.completions.create(model=MODEL, prompt=[10**6])
