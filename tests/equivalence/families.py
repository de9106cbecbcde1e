"""Tiny random models of several families, each with a trait of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB_SIZE = 512
WINDOW = 24
"""Neither a multiple of a block nor a power of two."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Wide, or the logits of a random model nearly tie and say nothing.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
# Tied to its input, a random model says the same token for ever.
_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2


def _llama() -> PreTrainedConfig:
    return LlamaConfig(num_hidden_layers=3, **_SIZES)


def _qwen3() -> PreTrainedConfig:
    # The config names a window, and no layer uses it.
    return Qwen3Config(
        num_hidden_layers=3, head_dim=32, sliding_window=8, use_sliding_window=False, **_SIZES
    )


def _mistral() -> PreTrainedConfig:
    return MistralConfig(num_hidden_layers=3, sliding_window=WINDOW, **_SIZES)


def _qwen3_moe() -> PreTrainedConfig:
    return Qwen3MoeConfig(num_hidden_layers=2, head_dim=16, num_experts=4, **_MOE, **_SIZES)


def _mixtral() -> PreTrainedConfig:
    return MixtralConfig(
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        **_SIZES,
    )


def _glm4_moe() -> PreTrainedConfig:
    # Rotary on a half of each head, normed queries and keys, a shared expert.
    return Glm4MoeConfig(
        num_hidden_layers=2,
        head_dim=16,
        n_routed_experts=4,
        first_k_dense_replace=1,
        use_qk_norm=True,
        **_MOE,
        **_SIZES,
    )


def _gpt_oss() -> PreTrainedConfig:
    return GptOssConfig(
        num_hidden_layers=4,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=_ALTERNATING,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **_SIZES,
    )


def _gemma3() -> PreTrainedConfig:
    kinds = ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2
    return Gemma3TextConfig(
        num_hidden_layers=8,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=kinds,
        **_UNTIED,
        **_SIZES,
    )


def _gemma2() -> PreTrainedConfig:
    return Gemma2Config(
        num_hidden_layers=4,
        head_dim=16,
        sliding_window=WINDOW,
        attn_logit_softcapping=20.0,
        query_pre_attn_scalar=16,
        **_UNTIED,
        **_SIZES,
    )


def _deepseek_v2() -> PreTrainedConfig:
    # Latent attention, served with heads of unequal K and V size; its rotary pairs neighbours.
    sizes = _SIZES | {"num_key_value_heads": 4}
    return DeepseekV2Config(
        num_hidden_layers=2,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=32,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        **_MOE,
        **sizes,
    )


def _deepseek_v3() -> PreTrainedConfig:
    sizes = _SIZES | {"num_key_value_heads": 4}
    return DeepseekV3Config(
        num_hidden_layers=2,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        **_MOE,
        **sizes,
    )


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral_sliding": _mistral,
    "qwen3_moe": _qwen3_moe,
    "mixtral_sliding_moe": _mixtral,
    "glm4_moe_partial_rotary": _glm4_moe,
    "gpt_oss_sinks": _gpt_oss,
    "gemma3_groups": _gemma3,
    "gemma2_softcap": _gemma2,
    "deepseek_v2_wider_values": _deepseek_v2,
    "deepseek_v3_unequal_heads": _deepseek_v3,
}


def save_family(name: str, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(FAMILIES[name](), dtype=torch.float32)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("sinks"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
