"""Decodes repeated from recordings against the same engine's eager steps, for every family: its
code can be recorded at all, padding changes nothing, and buffers hold nothing of the last step."""

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
    sampling_params,
)
from tests.equivalence.families import FAMILIES, VOCAB_SIZE, WINDOW, save_family
from tests.equivalence.rerun_recorder import RerunRecorder

LENGTHS = [1, 15, 16, 17, WINDOW - 1, WINDOW + 1, 60]
NUM_TOKENS = 40


@pytest.fixture(scope="module", params=list(FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.set_num_threads(1)
    path: Path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return load_model(path, dtype="float32", device="cpu")


def requests() -> list[Request]:
    """That end one after the other, so that the batch has every size; some are sampled."""
    return [
        request_of(
            prompt,
            sampling_params(max_tokens=NUM_TOKENS - 5 * i, temperature=[0.0, 0.8][i % 2], seed=i),
            request_id=str(i),
        )
        for i, prompt in enumerate(random_prompts(LENGTHS, vocab_size=VOCAB_SIZE))
    ]


def test_equals_eager_steps(loaded: LoadedModel) -> None:
    config = engine_config(attention_backend="sdpa", max_batch_size=len(LENGTHS))
    recorder = RerunRecorder()
    recorded = generate(Engine(loaded, config, recorder=recorder), requests())
    assert recorder.num_replays > NUM_TOKENS // 2
    assert recorded == generate(Engine(loaded, config), requests())
