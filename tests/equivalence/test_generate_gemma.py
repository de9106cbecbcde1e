"""The engine against transformers on Gemma 3 270M, past its window of 512 tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdray.core.request import Request
from pdray.engine.engine import Engine
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
)
from tests.equivalence.reference import Reference, ReferenceTokens, assert_equal_up_to_ties

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LENGTHS = [1, 5, 16, 100, 511, 512, 513, 700, 1024, 1500, 2000]
NUM_TOKENS = 64
# Token ids of letters and common words: uniformly random ones make the model repeat itself.
VOCAB_SIZE = 50_000


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def references(demo_model_path: Path, prompts: list[list[int]]) -> list[ReferenceTokens]:
    torch.set_num_threads(1)
    reference = Reference(demo_model_path)
    return reference.generate_all(prompts, NUM_TOKENS)


@pytest.fixture(scope="module")
def engine(demo_model_path: Path) -> Engine:
    config = engine_config(kv_cache_bytes=1 << 30, max_tokens_per_step=512, max_model_len=4096)
    return Engine.load(demo_model_path, config)


def requests_of(prompts: list[list[int]]) -> list[Request]:
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    return [request_of(p, sampling, request_id=str(i)) for i, p in enumerate(prompts)]


def test_each_alone(
    engine: Engine, prompts: list[list[int]], references: list[ReferenceTokens]
) -> None:
    outputs = [generate(engine, [request])[0] for request in requests_of(prompts)]
    assert_equal_up_to_ties("Gemma 3 270M, alone", outputs, references)


def test_a_mixed_batch_of_16(
    engine: Engine, prompts: list[list[int]], references: list[ReferenceTokens]
) -> None:
    # The first five twice: equal prompts side by side must not disturb each other.
    outputs = generate(engine, requests_of([*prompts, *prompts[:5]]))
    assert_equal_up_to_ties("Gemma 3 270M, batch of 16", outputs, [*references, *references[:5]])
