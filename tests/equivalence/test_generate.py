"""The engine against transformers, token for token, on every trait of attention."""

from __future__ import annotations

from dataclasses import dataclass
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
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import FAMILIES, VOCAB_SIZE, WINDOW, save_family
from tests.equivalence.handoff import hand_off
from tests.equivalence.reference import Reference, ReferenceTokens, assert_equal_up_to_ties

NUM_TOKENS = 14
LENGTHS = [1, 15, 16, 17, WINDOW - 1, WINDOW, WINDOW + 1, 100]
"""Round the edges of a block (16) and of the window."""


@dataclass(frozen=True)
class Family:
    name: str
    path: Path
    prompts: list[list[int]]
    references: list[ReferenceTokens]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    prompts = random_prompts(LENGTHS, vocab_size=VOCAB_SIZE)
    reference = Reference(path)
    references = reference.generate_all(prompts, NUM_TOKENS)
    return Family(request.param, path, prompts, references)


def greedy_requests(family: Family) -> list[Request]:
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    return [
        request_of(prompt, sampling, request_id=str(i)) for i, prompt in enumerate(family.prompts)
    ]


def test_the_reference_says_various_things(family: Family) -> None:
    # Models that repeat one token would make every other test here worthless.
    assert all(len(set(each.token_ids)) > 4 for each in family.references)


def test_each_alone(family: Family) -> None:
    engine = Engine.load(family.path, engine_config())
    outputs = [generate(engine, [request])[0] for request in greedy_requests(family)]
    assert_equal_up_to_ties(f"{family.name}, alone", outputs, family.references)


@pytest.mark.parametrize("max_tokens_per_step", [16, 37, 512])
def test_all_in_one_batch(family: Family, max_tokens_per_step: int) -> None:
    engine = Engine.load(family.path, engine_config(max_tokens_per_step=max_tokens_per_step))
    outputs = generate(engine, greedy_requests(family))
    what = f"{family.name}, one batch, {max_tokens_per_step} tokens a step"
    assert_equal_up_to_ties(what, outputs, family.references)


def test_with_preemption(family: Family) -> None:
    num_tokens = 40
    prompts = family.prompts[1:4]
    reference = Reference(family.path)
    references = reference.generate_all(prompts, num_tokens)
    roomy = Engine.load(family.path, engine_config())
    # All three fit at the start; at the end they would need twelve for each group.
    num_blocks = 8 * len(roomy.layout.groups)
    config = engine_config(kv_cache_bytes=num_blocks * roomy.layout.block_bytes)
    engine = Engine.load(family.path, config)
    sampling = sampling_params(max_tokens=num_tokens)
    sequences = [sequence_of(request_of(p, sampling, request_id=str(p))) for p in prompts]
    for sequence in sequences:
        engine.add(sequence)
    num_preemptions = sum(step.num_preemptions for step in run_until_idle(engine))
    is_all_sliding = all(group.sliding_window for group in engine.layout.groups)
    assert num_preemptions > 0 or is_all_sliding
    outputs = [sequence.output_token_ids for sequence in sequences]
    assert_equal_up_to_ties(f"{family.name}, preempted", outputs, references)


def test_placed_again_in_mid_stream(family: Family) -> None:
    engine = Engine.load(family.path, engine_config())
    outputs = []
    for prompt, reference in zip(family.prompts, family.references, strict=True):
        sent = tuple(reference.token_ids[:7])
        sampling = sampling_params(max_tokens=NUM_TOKENS)
        outputs += generate(engine, [request_of(prompt, sampling, output_token_ids=sent)])
    assert_equal_up_to_ties(f"{family.name}, placed again", outputs, family.references)


def test_prefill_here_decode_there(family: Family) -> None:
    config = engine_config(max_tokens_per_step=24)
    source, target = Engine.load(family.path, config), Engine.load(family.path, config)
    outputs = hand_off(source, target, greedy_requests(family))
    assert_equal_up_to_ties(f"{family.name}, handed off", outputs, family.references)


def test_sampling_is_the_same_alone_in_a_batch_and_after_a_handoff(family: Family) -> None:
    requests = [
        request_of(
            prompt,
            sampling_params(temperature=0.9, top_k=[None, 40][i % 2], top_p=0.95, seed=100 + i),
            request_id=str(i),
        )
        for i, prompt in enumerate(family.prompts)
    ]
    engine = Engine.load(family.path, engine_config(max_tokens_per_step=512))
    alone = [generate(engine, [request])[0] for request in requests]
    assert any(
        output != reference.token_ids
        for output, reference in zip(alone, family.references, strict=True)
    )
    assert generate(engine, requests) == alone
    target = Engine.load(family.path, engine_config())
    assert hand_off(engine, target, requests) == alone
