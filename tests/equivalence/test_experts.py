"""Mixtures of experts: transformers' grouped products, which a recording can hold, against its
plain loop over experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdray.engine.engine import Engine
from pdray.engine.model import load_model
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
)
from tests.equivalence.families import VOCAB_SIZE, save_family
from tests.equivalence.rerun_recorder import RerunRecorder


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss_sinks", "deepseek_v3_unequal_heads"])
def test_grouped_products_give_the_plain_loops_tokens(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    save_family(family, tmp_path)
    config = engine_config(attention_backend="sdpa", max_batch_size=4)
    prompts = random_prompts([3, 20, 41], vocab_size=VOCAB_SIZE)
    requests = [
        request_of(prompt, sampling_params(max_tokens=12), request_id=str(prompt))
        for prompt in prompts
    ]
    tokens = {}
    num_replays = {}
    for implementation in ("grouped_mm", "batched_mm", "eager"):
        loaded = load_model(tmp_path, dtype="float32", device="cpu")
        if implementation == "grouped_mm":  # what a model is loaded with
            assert loaded.model.get_experts_implementation()[""] == implementation
        loaded.model.set_experts_implementation(implementation)
        recorder = RerunRecorder()
        tokens[implementation] = generate(Engine(loaded, config, recorder=recorder), requests)
        num_replays[implementation] = recorder.num_replays
    assert tokens["grouped_mm"] == tokens["eager"]
    assert tokens["batched_mm"] == tokens["eager"]
    assert num_replays["grouped_mm"] == num_replays["batched_mm"] > 0
    # The loop makes its shapes of what the router says.
    assert num_replays["eager"] == 0
