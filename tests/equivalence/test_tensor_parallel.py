"""A worker of two ranks against one of one rank, and against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from pdray.engine.batch import Batch
from pdray.engine.engine import Engine
from pdray.engine.head import Score
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import VOCAB_SIZE, WINDOW, save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties

NUM_TOKENS = 14
LENGTHS = [1, 15, 16, 17, WINDOW - 1, WINDOW, WINDOW + 1, 100]

pytestmark = pytest.mark.slow


class LogitsLog:
    """Runs batches, and keeps what came out."""

    def __init__(self, engine: Engine) -> None:
        self._runner = engine._launcher.runner
        self.logits: list[torch.Tensor] = []
        engine._launcher.runner = self  # type: ignore[assignment]

    def run(self, batch: Batch, score: Score) -> torch.Tensor:
        logits = self._runner.run(batch, score)
        self.logits.append(logits.clone())
        return logits


WHOLE_KV = {"deepseek_v3_unequal_heads"}
"""transformers' plan splits its experts, not its attention: every rank has all KV heads."""


@pytest.fixture(
    scope="module",
    params=["llama", "qwen3", "mistral_sliding", "gemma3_groups", "qwen3_moe", *WHOLE_KV],
)
def family_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return path


@pytest.fixture(scope="module")
def two_ranks(family_path: Path) -> Iterator[Engine]:
    torch.set_num_threads(1)
    with closing(Engine.load(family_path, engine_config(tensor_parallel=2))) as engine:
        yield engine


def test_tokens_and_logits_are_those_of_one_rank(family_path: Path, two_ranks: Engine) -> None:
    prompts = random_prompts(LENGTHS, vocab_size=VOCAB_SIZE)
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    requests = [request_of(p, sampling, request_id=str(i)) for i, p in enumerate(prompts)]
    one_rank = Engine.load(family_path, engine_config())
    expected_log, log = LogitsLog(one_rank), LogitsLog(two_ranks)
    expected = generate(one_rank, requests)
    assert generate(two_ranks, requests) == expected
    difference = max(
        float((ours - theirs).abs().max())
        for ours, theirs in zip(log.logits, expected_log.logits, strict=True)
        if ours.numel()
    )
    print(f"largest difference of a logit: {difference:.2e}")
    assert difference < 1e-4
    reference = Reference(family_path)
    references = reference.generate_all(prompts, NUM_TOKENS)
    assert_equal_up_to_ties("two ranks", expected, references)


def test_the_kv_heads_are_split_and_the_digest_says_so(
    family_path: Path, two_ranks: Engine
) -> None:
    one_rank = Engine.load(family_path, engine_config())
    is_whole = any(name in family_path.name for name in WHOLE_KV)
    for ours, theirs in zip(two_ranks.layout.groups, one_rank.layout.groups, strict=True):
        assert ours.num_kv_heads * (1 if is_whole else 2) == theirs.num_kv_heads
    assert two_ranks.layout.layout_digest != one_rank.layout.layout_digest


def test_logprobs_of_prompts_are_those_of_one_rank(family_path: Path, two_ranks: Engine) -> None:
    one_rank = Engine.load(family_path, engine_config())
    (prompt,) = random_prompts([90], vocab_size=VOCAB_SIZE)
    sampling = sampling_params(max_tokens=1, prompt_logprobs=2)
    logprobs: list[list[float]] = []
    for engine in (one_rank, two_ranks):
        engine.add(sequence_of(request_of(prompt, sampling)))
        outputs = [each for step in run_until_idle(engine) for each in step.sequences]
        scored = outputs[-1].prompt_logprobs
        assert scored is not None
        assert len(scored) == len(prompt) - 1
        logprobs.append([number for each in scored for number in each.top_logprobs])
    assert logprobs[1] == pytest.approx(logprobs[0], abs=1e-3)
