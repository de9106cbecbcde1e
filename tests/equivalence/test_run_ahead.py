"""An engine that launches a step before it reads the last one's tokens, against transformers and
against one that does not: the same tokens, whatever comes, ends or is made to wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdray.core.request import Request
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
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
from tests.equivalence.handoff import hand_off
from tests.equivalence.reference import Reference, assert_equal_up_to_ties
from tests.equivalence.rerun_recorder import RerunRecorder

LENGTHS = [1, 15, 16, 17, WINDOW - 1, WINDOW + 1, 60]
NUM_TOKENS = 30
PROMPTS = random_prompts(LENGTHS, vocab_size=VOCAB_SIZE)
MIXES: dict[str, list[dict[str, object]]] = {
    "sampled": [{"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "top_k": 40}, {}],
    "biased": [{"logit_bias": ((5, 3.0),)}, {"min_tokens": 9, "stop_token_ids": (5, 9)}, {}],
    "some_penalized": [{"presence_penalty": 1.0}, {}, {"temperature": 0.7}],
    "logprobs": [{"logprobs": 2}, {}, {"logprobs": 0, "temperature": 1.0}],
}


@pytest.fixture(scope="module", params=["llama", "gpt_oss_sinks", "gemma3_groups"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One group of blocks; a full and a sliding one; sliding ones of other shapes beside it."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return path


@pytest.fixture(scope="module")
def loaded(path: Path) -> LoadedModel:
    return load_model(path, dtype="float32", device="cpu")


def requests(mix: list[dict[str, object]]) -> list[Request]:
    """That end one after the other."""
    return [
        request_of(
            prompt,
            sampling_params(max_tokens=NUM_TOKENS - 3 * i, seed=i, **mix[i % len(mix)]),
            request_id=str(i),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def run(engine: Engine, requests: list[Request]) -> list[tuple[object, ...]]:
    """All together; each one's tokens, logprobs and end."""
    sequences = [sequence_of(request) for request in requests]
    for sequence in sequences:
        engine.add(sequence)
    outputs = [each for step in run_until_idle(engine) for each in step.sequences]
    assert engine.pool.num_available_blocks == engine.pool.num_blocks
    return [
        tuple(
            (output.index, output.token_ids, output.logprobs, output.finish_reason)
            for output in outputs
            if output.sequence is sequence and output.token_ids
        )
        for sequence in sequences
    ]


@pytest.mark.parametrize("is_recorded", [False, True])
def test_equals_transformers(path: Path, loaded: LoadedModel, is_recorded: bool) -> None:
    recorder = RerunRecorder()
    engine = Engine(
        loaded,
        engine_config(attention_backend="sdpa" if is_recorded else "auto", max_batch_size=8),
        recorder=recorder if is_recorded else None,
        runs_ahead=True,
    )
    reference = Reference(path)
    greedy = [request_of(each, sampling_params(max_tokens=NUM_TOKENS)) for each in PROMPTS]
    outputs = generate(engine, greedy)
    assert (recorder.num_replays > NUM_TOKENS // 2) == is_recorded
    references = reference.generate_all(PROMPTS, NUM_TOKENS)
    assert_equal_up_to_ties("run ahead", outputs, references)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_equals_step_by_step(loaded: LoadedModel, mix: list[dict[str, object]]) -> None:
    ahead = Engine(loaded, engine_config(), runs_ahead=True)
    assert run(ahead, requests(mix)) == run(Engine(loaded, engine_config()), requests(mix))


def test_with_preemption(loaded: LoadedModel) -> None:
    block_bytes = Engine(loaded, engine_config()).storage.block_bytes
    num_groups = len(Engine(loaded, engine_config()).layout.groups)
    config = engine_config(kv_cache_bytes=9 * num_groups * block_bytes)
    some = requests(MIXES["sampled"])
    ahead = Engine(loaded, config, runs_ahead=True)
    sequences = [sequence_of(request) for request in some]
    for sequence in sequences:
        ahead.add(sequence)
    steps = run_until_idle(ahead)
    assert sum(step.num_preemptions for step in steps) > 0
    alone = Engine(loaded, engine_config())
    assert [each.output_token_ids for each in sequences] == [
        generate(alone, [request])[0] for request in some
    ]


def test_handed_over(loaded: LoadedModel) -> None:
    """Sequences come one by one into a batch that is a step ahead."""
    source = Engine(loaded, engine_config(max_tokens_per_step=16), runs_ahead=True)
    target = Engine(loaded, engine_config(), runs_ahead=True)
    some = requests(MIXES["sampled"])
    assert hand_off(source, target, some) == generate(Engine(loaded, engine_config()), some)
