"""Checkpoints with layers that predict the token after the next: they are served without them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdray.engine.engine import Engine
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
)
from tests.equivalence.families import FAMILIES, VOCAB_SIZE, save_family
from tests.equivalence.reference import Reference, assert_equal_up_to_ties

NUM_TOKENS = 14


@pytest.mark.parametrize("name", ["deepseek_v3_unequal_heads", "glm4_moe_partial_rotary"])
def test_the_answers_are_the_plain_models(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = FAMILIES[name]()
    assert config.num_nextn_predict_layers == 1
    save_family(name, tmp_path)
    prompts = random_prompts([3, 40], vocab_size=VOCAB_SIZE)
    plain = Reference(tmp_path)
    references = [plain.generate(prompt, NUM_TOKENS) for prompt in prompts]

    add_mtp_layer(tmp_path / "model.safetensors", config.num_hidden_layers, config.hidden_size)
    with_layer = Reference(tmp_path)
    engine = Engine.load(tmp_path, engine_config())
    assert sum(len(group.layer_ids) for group in engine.layout.groups) == config.num_hidden_layers
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    outputs = generate(engine, [request_of(p, sampling, request_id=str(p)) for p in prompts])
    assert [with_layer.generate(p, NUM_TOKENS).token_ids for p in prompts] == [
        each.token_ids for each in references
    ]
    assert_equal_up_to_ties(f"{name}, with an MTP layer", outputs, references)


def add_mtp_layer(weights: Path, num_layers: int, hidden_size: int) -> None:
    """As the published checkpoints have it: a decoder layer past the last one, and what joins it
    to the model."""
    tensors = load_file(weights)
    last, extra = f"model.layers.{num_layers - 1}.", f"model.layers.{num_layers}."
    layer = {
        name.replace(last, extra): torch.randn_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith(last)
    }
    assert layer
    layer |= {
        f"{extra}enorm.weight": torch.randn(hidden_size),
        f"{extra}hnorm.weight": torch.randn(hidden_size),
        f"{extra}eh_proj.weight": torch.randn(hidden_size, 2 * hidden_size),
        f"{extra}embed_tokens.weight": torch.randn(VOCAB_SIZE, hidden_size),
        f"{extra}shared_head.norm.weight": torch.randn(hidden_size),
        f"{extra}shared_head.head.weight": torch.randn(VOCAB_SIZE, hidden_size),
    }
    save_file(tensors | layer, weights, metadata={"format": "pt"})
