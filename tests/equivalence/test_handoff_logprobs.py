"""Logprobs of all tokens, the first among them, come through the handoff: those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.applications import MODEL, MODES, running
from tests.local_cluster import random_prompts

TOLERANCE = 1e-3
NUM_TOKENS = 6
NUM_TOP = 3


@pytest.mark.parametrize("mode", MODES)
async def test_every_tokens_logprobs_are_those_of_a_plain_forward(
    mode: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32).eval()
    (prompt,) = random_prompts([200])
    with torch.inference_mode():
        tokens = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            min_new_tokens=NUM_TOKENS,
            max_new_tokens=NUM_TOKENS,
        )
        logprobs_TV = model(tokens).logits[0].double().log_softmax(-1)[len(prompt) - 1 : -1]
    expected = logprobs_TV.gather(1, tokens[0, len(prompt) :, None])[:, 0].tolist()
    best_TK = logprobs_TV.topk(NUM_TOP).values
    async with running(mode, tiny_model_path, tmp_path) as application:
        answer = await application.client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=NUM_TOKENS, temperature=0, logprobs=NUM_TOP,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs == pytest.approx(expected, abs=TOLERANCE)
    assert found.top_logprobs is not None
    for tops, best_K in zip(found.top_logprobs, best_TK, strict=True):
        values = sorted(tops.values(), reverse=True)[:NUM_TOP]
        assert values == pytest.approx(best_K.tolist(), abs=TOLERANCE)
