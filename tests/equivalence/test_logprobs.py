"""Logprobs of prompts and outputs against a plain forward of transformers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdray.core.logprobs import TokenLogprobs
from pdray.engine import head
from pdray.engine.engine import Engine
from tests.engine_driver import (
    engine_config,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import FAMILIES, VOCAB_SIZE, save_family

TOLERANCE = 1e-3
"""Chunks and batches move logits by up to 2e-4 (DESIGN.md)."""


@pytest.fixture(scope="module", params=["llama", "gemma2_softcap", "mistral_sliding"])
def family_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert request.param in FAMILIES
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return path


def log_softmax_of(path: Path, token_ids: list[int]) -> torch.Tensor:
    """[T, V]"""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)


def assert_right(found: tuple[TokenLogprobs, ...], num_top: int, expected_TV: torch.Tensor) -> None:
    for each, expected_V in zip(found, expected_TV, strict=True):
        assert each.logprob == pytest.approx(float(expected_V[each.token_id]), abs=TOLERANCE)
        best = expected_V.topk(num_top)
        assert each.top_logprobs == pytest.approx(best.values.tolist(), abs=TOLERANCE)
        tops = expected_V[list(each.top_token_ids)].tolist()
        assert each.top_logprobs == pytest.approx(tops, abs=TOLERANCE)
        likelier = expected_V > each.logprob
        near = (expected_V - each.logprob).abs() < TOLERANCE
        assert abs(each.rank - 1 - int(likelier.sum())) <= int(near.sum())


@pytest.mark.parametrize("max_slice", [1, 3 * VOCAB_SIZE, 2**24])
def test_prompt_and_output_logprobs_in_chunks_and_slices(
    family_path: Path, max_slice: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "MAX_SLICE_LOGITS", max_slice)
    engine = Engine.load(family_path, engine_config(max_tokens_per_step=37))
    prompts = random_prompts([1, 2, 36, 37, 38, 90], vocab_size=VOCAB_SIZE)
    sequences = [
        sequence_of(
            request_of(
                prompt,
                sampling_params(
                    max_tokens=6,
                    temperature=[0.0, 0.9][i % 2],
                    repetition_penalty=1.2,
                    logprobs=i % 3,
                    prompt_logprobs=(i + 1) % 3,
                ),
                request_id=str(i),
            )
        )
        for i, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        engine.add(sequence)
    outputs = [each for step in run_until_idle(engine) for each in step.sequences]
    for i, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        own = [each for each in outputs if each.sequence is sequence and each.token_ids]
        expected_TV = log_softmax_of(family_path, prompt + sequence.output_token_ids)
        of_outputs = tuple(one for each in own for one in each.logprobs or ())
        assert [one.token_id for one in of_outputs] == sequence.output_token_ids
        assert_right(of_outputs, i % 3, expected_TV[len(prompt) - 1 : -1])
        of_prompt = own[0].prompt_logprobs
        assert of_prompt is not None
        assert [one.token_id for one in of_prompt] == prompt[1:]
        assert_right(of_prompt, (i + 1) % 3, expected_TV[: len(prompt) - 1])
        assert all(each.prompt_logprobs is None for each in own[1:])


def test_a_prompt_that_was_placed_again_is_not_scored_again(family_path: Path) -> None:
    engine = Engine.load(family_path, engine_config())
    sampling = sampling_params(max_tokens=4, logprobs=0, prompt_logprobs=1)
    sequence = sequence_of(request_of([5, 6, 7], sampling, output_token_ids=(9,)))
    engine.add(sequence)
    outputs = [each for step in run_until_idle(engine) for each in step.sequences]
    assert [each.index for each in outputs if each.token_ids] == [1, 2, 3]
    assert all(each.prompt_logprobs is None for each in outputs)


@pytest.mark.slow
def test_two_ranks_find_a_prompt_as_likely_as_one(
    family_path: Path,
) -> None:
    (prompt,) = random_prompts([70], vocab_size=VOCAB_SIZE)
    sampling = sampling_params(max_tokens=3, logprobs=1, prompt_logprobs=2)
    config = engine_config(max_tokens_per_step=37, tensor_parallel=2)
    with closing(Engine.load(family_path, config)) as engine:
        engine.add(sequence_of(request_of(prompt, sampling)))
        outputs = [each for step in run_until_idle(engine) for each in step.sequences]
    (found,) = [each.prompt_logprobs for each in outputs if each.prompt_logprobs is not None]
    assert_right(found, 2, log_softmax_of(family_path, prompt)[:-1])
