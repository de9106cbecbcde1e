"""Tokens of tiny random models on the device against transformers in fp32 on the CPU."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from benchmarks.gpu.engines import add_greedy, engine_config, random_prompts, steps
from pdray.engine.cuda_graphs import recorder_for
from pdray.engine.engine import Engine
from pdray.engine.model import load_model

VOCAB_SIZE = 512
PROMPT_LENGTHS = [1, 15, 16, 17, 70, 130]
NUM_TOKENS = 32
TOLERANCES = {"float32": 2e-3, "bfloat16": 0.15}
"""How far below the best logit, in standard deviations of all, a chosen token's may be."""
MIN_SHARE = {"float32": 1.0, "bfloat16": 0.9}
"""Of tokens within it. In bf16 an expert chosen another way moves a token further."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    # Wide, or the logits of a random model nearly tie and say nothing.
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(num_hidden_layers=3, **_SIZES),
    "qwen3": Qwen3Config(num_hidden_layers=3, **_SIZES),
    "gemma3, window of 24": Gemma3TextConfig(num_hidden_layers=6, sliding_window=24, **_SIZES),
    "gpt-oss, sinks": GptOssConfig(
        num_hidden_layers=4,
        sliding_window=24,
        num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **_EXPERTS,
        **_SIZES,
    ),
    "qwen3 moe": Qwen3MoeConfig(
        num_hidden_layers=2, num_experts=4, moe_intermediate_size=32, **_EXPERTS, **_SIZES
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One way to run one model: recorded and a step ahead, as a worker does, or neither.
    ``worst`` and the tolerance as in TOLERANCES."""

    model: str
    dtype: str
    is_recorded: bool
    backend: str
    share_within: float
    worst: float
    is_good: bool


def check_model(name: str, device: str, backend: str) -> Iterator[Checked]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        torch.manual_seed(0)
        reference = AutoModelForCausalLM.from_config(
            MODELS[name], dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for parameter_name, parameter in reference.named_parameters():
            if parameter_name.endswith("sinks"):
                torch.nn.init.normal_(parameter)
        reference.save_pretrained(path)
        for dtype, is_recorded in itertools.product(TOLERANCES, (False, True)):
            if not is_recorded or recorder_for(device) is not None:
                yield _check(name, reference, path, device, dtype, backend, is_recorded=is_recorded)


def _check(
    name: str,
    reference: PreTrainedModel,
    path: Path,
    device: str,
    dtype: str,
    backend: str,
    *,
    is_recorded: bool,
) -> Checked:
    config = engine_config(device, dtype, attention_backend=backend)
    loaded = load_model(path, dtype=dtype, device=device)
    recorder = recorder_for(device) if is_recorded else None
    engine = Engine(loaded, config, recorder=recorder, runs_ahead=is_recorded)
    prompts = random_prompts(PROMPT_LENGTHS, VOCAB_SIZE)
    sequences = add_greedy(engine, prompts, NUM_TOKENS)
    for _ in steps(engine):
        pass
    shortfalls = torch.cat(
        [
            _shortfalls(reference, prompt, sequence.output_token_ids)
            for prompt, sequence in zip(prompts, sequences, strict=True)
        ]
    )
    share = float((shortfalls <= TOLERANCES[dtype]).float().mean())
    return Checked(
        model=name,
        dtype=dtype,
        is_recorded=is_recorded,
        backend=backend,
        share_within=share,
        worst=float(shortfalls.max()),
        is_good=share >= MIN_SHARE[dtype],
    )


@torch.inference_mode()
def _shortfalls(
    reference: PreTrainedModel, prompt: list[int], token_ids: list[int]
) -> torch.Tensor:
    """Of each output token after the same tokens before it: how far its logit is below the best."""
    input_ids = torch.tensor([prompt + token_ids[:-1]])
    logits = reference(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 :]
    chosen = logits.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
    shortfalls: torch.Tensor = (logits.amax(dim=1) - chosen) / logits.std(dim=1)
    return shortfalls
