"""Which models are taken, what is found out about them, and why others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedConfig

from pdray.core.errors import UnsupportedModelError
from pdray.engine.model import load_model, model_digest
from pdray.engine.probe import attention_span

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

REFUSED_BY_CONFIG: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "encoder-decoder": (transformers.T5Config, "encoder-decoder"),
    "image and text": (transformers.Gemma3Config, "multimodal input .*vision_config"),
    "state space": (transformers.MambaConfig, "linear attention or state space"),
    "some linear layers": (transformers.Qwen3NextConfig, "linear attention or state space"),
}

REFUSED_BY_PROBE: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "attention of its own": (
        lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
        "attention interface",
    ),
    "not causal": (
        lambda: transformers.Gemma3TextConfig(
            head_dim=8, use_bidirectional_attention=True, **SIZES
        ),
        "not causal",
    ),
    "chunks instead of a window": (
        lambda: transformers.Llama4TextConfig(
            head_dim=8, intermediate_size_mlp=48, num_local_experts=2, **SIZES
        ),
        "another pattern of positions",
    ),
}


def saved(config: PreTrainedConfig, folder: Path) -> Path:
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", list(REFUSED_BY_CONFIG))
def test_refused_before_a_weight_is_read(what: str, tmp_path: Path) -> None:
    config_class, reason = REFUSED_BY_CONFIG[what]
    config_class().save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(tmp_path, dtype="float32", device="cpu")


@pytest.mark.parametrize("what", list(REFUSED_BY_PROBE))
def test_refused_after_a_look_at_its_attention(what: str, tmp_path: Path) -> None:
    make_config, reason = REFUSED_BY_PROBE[what]
    path = saved(make_config(), tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(path, dtype="float32", device="cpu")


def test_a_window_counts_where_layers_use_it_not_where_the_config_names_it(
    tmp_path: Path,
) -> None:
    named = transformers.Qwen3Config(
        head_dim=8, sliding_window=4, use_sliding_window=False, **SIZES
    )
    used = transformers.MistralConfig(sliding_window=4, **SIZES)
    windows = [
        [
            layer.kv.sliding_window
            for layer in load_model(path, dtype="float32", device="cpu").layers
        ]
        for path in (saved(named, tmp_path / "named"), saved(used, tmp_path / "used"))
    ]
    assert windows == [[None, None], [4, 4]]


def test_eos_comes_from_the_generation_config_first(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(eos_token_id=5, **SIZES)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    assert loaded.eos_token_ids == {7, 9}


def test_positions_stop_where_rotary_frequencies_would_depend_on_the_batch(
    tmp_path: Path,
) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 128,
    }
    config = transformers.LlamaConfig(max_position_embeddings=512, rope_parameters=rope, **SIZES)
    loaded = load_model(saved(config, tmp_path), dtype="float32", device="cpu")
    assert loaded.max_positions == 128


def test_the_digest_does_not_depend_on_where_the_model_lies() -> None:
    here = transformers.LlamaConfig(name_or_path="here", **SIZES)
    there = transformers.LlamaConfig(name_or_path="there", **SIZES)
    other = transformers.LlamaConfig(rope_theta=5.0, **SIZES)
    assert model_digest(here) == model_digest(there) != model_digest(other)


@pytest.mark.parametrize("window", [1, 2, 15, 512, 4096, 131_072])
def test_the_span_of_a_sliding_mask_is_found(window: int) -> None:
    assert attention_span(lambda _b, _h, q, k: (k <= q) & (k > q - window), "layer") == window


def test_the_span_of_a_causal_mask_is_everything() -> None:
    assert attention_span(lambda _b, _h, q, k: k <= q, "layer") is None


def test_a_mask_with_holes_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="another pattern"):
        attention_span(lambda _b, _h, q, k: (k <= q) & ((k > q - 64) | (k < 4)), "layer")
