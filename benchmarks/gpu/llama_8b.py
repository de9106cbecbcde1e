"""Decode and prefill of a Llama of 8 billion random weights, made where they run."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.gpu.engines import BLOCK_SIZE, add_greedy, engine_config, random_prompts, steps
from benchmarks.gpu.limits import Limits
from pdray.engine.cuda_graphs import recorder_for
from pdray.engine.engine import Engine
from pdray.engine.model import adopt_model
from pdray.engine.run_ahead import gains_by_running_ahead

DECODE_TARGET, PREFILL_TARGET = 0.85, 0.65
"""Of the bytes and of the operations a second that the limits allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    config: LlamaConfig
    batch_sizes: tuple[int, ...]
    context: int
    num_steps: int
    prefill_batch: int
    prefill_tokens: int


def gpu_sizes() -> Sizes:
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        tie_word_embeddings=False,
    )
    return Sizes(
        config=config,
        batch_sizes=(1, 8, 32, 64),
        context=1024,
        num_steps=40,
        prefill_batch=4,
        prefill_tokens=2048,
    )


def cpu_sizes() -> Sizes:
    """For a run of the script itself."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return Sizes(
        config=config,
        batch_sizes=(1, 2),
        context=64,
        num_steps=4,
        prefill_batch=2,
        prefill_tokens=64,
    )


def random_llama(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """Of random weights in bf16, made on ``device``."""
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """``share`` is of the least time that the limits allow, over the time taken."""

    name: str
    tokens_per_s: float
    step_s: float
    least_s: float
    target: float

    @property
    def share(self) -> float:
        return self.least_s / self.step_s


class Llama:
    def __init__(self, device: torch.device, sizes: Sizes, limits: Limits, backend: str) -> None:
        self._sizes = sizes
        self._limits = limits
        self._vocab_size = sizes.config.vocab_size
        model = random_llama(sizes.config, device)
        output_weights = sizes.config.vocab_size * sizes.config.hidden_size
        # A step reads a few rows of the input embedding only, which is as large.
        weights = sum(each.numel() for each in model.parameters())
        self._num_read_weights = weights - output_weights
        self._num_layer_weights = self._num_read_weights - output_weights
        loaded = adopt_model(model.eval().requires_grad_(False), sizes.config, Path())
        max_batch = max(*sizes.batch_sizes, sizes.prefill_batch)
        max_tokens = max(sizes.context + sizes.num_steps, sizes.prefill_tokens) + BLOCK_SIZE
        blocks = max(
            max_batch * -(-(sizes.context + sizes.num_steps + 2) // BLOCK_SIZE),
            sizes.prefill_batch * -(-(sizes.prefill_tokens + 1) // BLOCK_SIZE),
        )
        self.engine = Engine(
            loaded,
            engine_config(
                str(device),
                "bfloat16",
                attention_backend=backend,
                kv_cache_bytes=2 * blocks * BLOCK_SIZE * self._kv_bytes_per_token,
                max_tokens_per_step=max(8192 if device.type == "cuda" else 256, max_batch),
                max_batch_size=max_batch,
                max_model_len=max_tokens,
            ),
            recorder=recorder_for(str(device)),
            runs_ahead=gains_by_running_ahead(str(device)),
        )

    @property
    def _kv_bytes_per_token(self) -> int:
        config = self._sizes.config
        head_dim: int = config.hidden_size // config.num_attention_heads
        num_kv_heads = config.num_key_value_heads or config.num_attention_heads
        return 2 * config.num_hidden_layers * 2 * num_kv_heads * head_dim

    def decode(self, batch_size: int) -> Figure:
        context, num_steps = self._sizes.context, self._sizes.num_steps
        prompts = random_prompts([context] * batch_size, self._vocab_size, seed=batch_size)
        add_greedy(self.engine, prompts, num_steps + 1)
        step_s = statistics.median(
            step.step_s
            for step in steps(self.engine)
            if step.num_prefill_tokens == 0 and step.num_decode_tokens == batch_size
        )
        keys = batch_size * (context + num_steps // 2)
        num_bytes = 2 * self._num_read_weights + keys * self._kv_bytes_per_token
        return Figure(
            name=f"decode, batch {batch_size}, context {context}",
            tokens_per_s=batch_size / step_s,
            step_s=step_s,
            least_s=num_bytes / self._limits.read_bytes_per_s,
            target=DECODE_TARGET,
        )

    def prefill(self) -> Figure:
        count, tokens = self._sizes.prefill_batch, self._sizes.prefill_tokens
        step_s = math.inf
        for seed in range(3):  # the first one compiles kernels
            prompts = random_prompts([tokens] * count, self._vocab_size, seed=1000 + seed)
            add_greedy(self.engine, prompts, 1)
            step_s = min(step_s, sum(step.step_s for step in steps(self.engine)))
        return Figure(
            name=f"prefill, {count} x {tokens}",
            tokens_per_s=count * tokens / step_s,
            step_s=step_s,
            least_s=self._prefill_operations(count, tokens) / self._limits.gemm_flops_per_s,
            target=PREFILL_TARGET,
        )

    def _prefill_operations(self, count: int, tokens: int) -> float:
        """Of the layers' products and of causal attention; the output layer runs for one token of
        each prompt."""
        config = self._sizes.config
        pairs = count * tokens * (tokens + 1) / 2
        attention = 4 * pairs * config.num_hidden_layers * config.hidden_size
        output = count * (self._num_read_weights - self._num_layer_weights)
        return float(2 * (count * tokens * self._num_layer_weights + output) + attention)
