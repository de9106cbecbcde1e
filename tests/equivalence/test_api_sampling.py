"""Sampling through the whole data path: prefill and decode apart, and the openai client before."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import Request
from pdray.engine.engine import Engine
from pdray.frontend.text import Tokenizer
from pdray.local import LocalCluster
from pdray.serve.batch import BatchRun
from pdray.serve.completion import CompletionService
from tests import engine_driver
from tests.engine_driver import engine_config, sampling_params
from tests.equivalence.conftest import MODEL
from tests.local_cluster import random_prompts

TOLERANCE = 1e-3
PROMPT = "The capital of France"
EVERYTHING = {
    "temperature": 0.9,
    "top_p": 0.9,
    "seed": 5,
    "max_tokens": 12,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.3,
    "logit_bias": {"7": 3.0, "8": -100.0},
}
OURS = {"ignore_eos": True, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2, "min_tokens": 4}


def log_softmax_of(path: Path, token_ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)


async def generated(cluster: LocalCluster, request: Request) -> list[TokenLogprobs]:
    logprobs: list[TokenLogprobs] = []
    async for delta in cluster.frontend.generate(request):
        assert delta.logprobs is not None
        assert tuple(each.token_id for each in delta.logprobs) == delta.token_ids
        logprobs += delta.logprobs
    return logprobs


async def test_pooled_sampling_is_that_of_one_engine(
    cluster: LocalCluster, tiny_model_path: Path
) -> None:
    changes = [
        {},
        {"repetition_penalty": 1.4, "presence_penalty": 1.0},
        {"temperature": 0.0, "frequency_penalty": 0.8},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02},
        {"logit_bias": ((9, 5.0), (10, -100.0)), "min_tokens": 3},
    ]
    requests = [
        engine_driver.request_of(
            prompt,
            sampling_params(
                **{"temperature": 1.0, "seed": 3 + i, "logprobs": 2, "max_tokens": 16, **change}
            ),
            request_id=str(i),
        )
        for i, (prompt, change) in enumerate(
            zip(random_prompts([1, 20, 64, 100, 200]), changes, strict=True)
        )
    ]
    engine = Engine.load(tiny_model_path, engine_config())
    expected = engine_driver.generate(engine, requests)
    found = await asyncio.gather(*(generated(cluster, request) for request in requests))
    assert [[each.token_id for each in tokens] for tokens in found] == expected
    for request, tokens in zip(requests, found, strict=True):
        ids = [*request.prompt_token_ids, *(each.token_id for each in tokens)]
        expected_TV = log_softmax_of(tiny_model_path, ids)[request.num_prompt_tokens - 1 :]
        for each, expected_V in zip(tokens, expected_TV, strict=False):
            wanted = float(expected_V[each.token_id])
            assert each.logprob == pytest.approx(wanted, abs=TOLERANCE)


async def test_a_chats_logprobs_whole_and_streamed(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer, tiny_model_path: Path
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": MODEL, "messages": messages, "logprobs": True, "top_logprobs": 3}
    whole = await client.chat.completions.create(**body, **EVERYTHING, extra_body=OURS)
    stream = await client.chat.completions.create(
        **body, **EVERYTHING, extra_body=OURS, stream=True
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    streamed = [each for chunk in chunks if chunk.logprobs for each in chunk.logprobs.content]
    assert content is not None
    assert len(content) == 12 == whole.usage.completion_tokens
    assert [each.token for each in streamed] == [each.token for each in content]
    assert [each.logprob for each in streamed] == pytest.approx(
        [each.logprob for each in content], abs=TOLERANCE
    )
    text = b"".join(bytes(each.bytes) for each in content if not each.token.startswith("<"))
    assert text.decode(errors="replace") == whole.choices[0].message.content
    ids = await tokenizer.chat(messages)
    first_V = log_softmax_of(tiny_model_path, ids)[-1]
    best = first_V.topk(3)
    assert [each.logprob for each in content[0].top_logprobs] == pytest.approx(
        best.values.tolist(), abs=TOLERANCE
    )
    assert [bytes(each.bytes) for each in content[0].top_logprobs] == [
        tokenizer.spelling(token_id) for token_id in best.indices.tolist()
    ]


@pytest.mark.parametrize("echo", [False, True])
async def test_a_completions_logprobs_whole_and_streamed(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer, tiny_model_path: Path, echo: bool
) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "logprobs": 2, "echo": echo, **EVERYTHING}
    (whole,) = (await client.completions.create(**body, extra_body=OURS)).choices
    stream = await client.completions.create(**body, extra_body=OURS, stream=True)
    chunks = [chunk.choices[0] async for chunk in stream]
    logprobs = whole.logprobs
    assert logprobs is not None
    assert [token for each in chunks for token in each.logprobs.tokens] == logprobs.tokens
    assert [at for each in chunks for at in each.logprobs.text_offset] == logprobs.text_offset
    assert "".join(each.text for each in chunks) == whole.text
    prompt_ids = await tokenizer.encode(PROMPT)
    num_prompt = len(prompt_ids) if echo else 0
    assert len(logprobs.tokens) == num_prompt + 12
    assert whole.text.startswith(PROMPT) == echo
    if not echo:
        return
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    expected_TV = log_softmax_of(tiny_model_path, prompt_ids)
    for position in range(1, num_prompt):
        expected_V = expected_TV[position - 1]
        wanted = float(expected_V[prompt_ids[position]])
        assert logprobs.token_logprobs[position] == pytest.approx(wanted, abs=TOLERANCE)
        token = logprobs.tokens[position]
        at = logprobs.text_offset[position]
        assert whole.text[at : at + len(token)] == token
        assert max(logprobs.top_logprobs[position].values()) == pytest.approx(
            float(expected_V.max()), abs=TOLERANCE
        )
    assert logprobs.text_offset[num_prompt] == len(PROMPT)


async def test_prompt_logprobs_have_vllms_shape(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer, tiny_model_path: Path
) -> None:
    long_prompt = random_prompts([150])[0]
    answer = await client.completions.create(
        model=MODEL, prompt=long_prompt, max_tokens=2, extra_body={"prompt_logprobs": 1}
    )
    chat = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=2,
        extra_body={"prompt_logprobs": 0},
    )
    found = answer.choices[0].model_extra["prompt_logprobs"]
    expected_TV = log_softmax_of(tiny_model_path, long_prompt)
    assert found[0] is None
    assert len(found) == len(long_prompt)
    for position, entry in enumerate(found[1:], start=1):
        own = entry[str(long_prompt[position])]
        expected_V = expected_TV[position - 1]
        wanted = float(expected_V[long_prompt[position]])
        assert own["logprob"] == pytest.approx(wanted, abs=TOLERANCE)
        assert own["decoded_token"] != ""
        assert own["rank"] == 1 or len(entry) == 2
        ranks = {each["rank"]: each["logprob"] for each in entry.values()}
        assert ranks[1] == pytest.approx(float(expected_V.max()), abs=TOLERANCE)
    of_chat = chat.model_extra["prompt_logprobs"]
    assert of_chat[0] is None
    assert [len(each) for each in of_chat[1:]] == [1] * (len(of_chat) - 1)


async def test_a_bias_of_minus_100_and_stop_suppression_hold_to_the_client(
    client: openai.AsyncOpenAI, tokenizer: Tokenizer
) -> None:
    greedy = {"model": MODEL, "prompt": PROMPT, "temperature": 0.0, "max_tokens": 8}
    ours = {"ignore_eos": True}
    free = await client.completions.create(**greedy, logprobs=0, extra_body=ours)
    first = free.choices[0].text[0]
    (first_id,) = (await tokenizer.encode(first))[1:]
    bias = {str(first_id): -100}
    biased = await client.completions.create(**greedy, logit_bias=bias, extra_body=ours)
    assert first not in biased.choices[0].text
    held = await client.completions.create(
        **greedy, extra_body={"stop_token_ids": [first_id], "min_tokens": 4}
    )
    assert first not in held.choices[0].text[:4]
    assert held.usage.completion_tokens >= 4


async def test_batches_take_the_same_bodies(service: CompletionService, tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "logprobs": 1, "prompt_logprobs": 1}
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": body | EVERYTHING | OURS,
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    run = BatchRun(service, max_in_flight=2, give_up_after_s=5, on_change=lambda counts: None)
    await run.run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    answer = json.loads((tmp_path / "out.jsonl").read_text())["response"]["body"]
    (choice,) = answer["choices"]
    assert len(choice["logprobs"]["tokens"]) == 12
    assert all(math.isfinite(each) for each in choice["logprobs"]["token_logprobs"])
    assert choice["prompt_logprobs"][0] is None


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("logit_bias", {"logit_bias": {"999999": 1}}),
        ("min_tokens", {"extra_body": {"min_tokens": 20}, "max_tokens": 5}),
        ("logprobs", {"logprobs": 21}),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    client: openai.AsyncOpenAI, param: str, fields: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"accepted: ") as caught:
        await client.completions.create(model=MODEL, prompt=PROMPT, **fields)
    assert caught.value.param == param
