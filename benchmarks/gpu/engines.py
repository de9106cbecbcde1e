"""Engines for checks, and their work by hand: no Ray, no frontend."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks.greedy import greedy_sequence
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.outputs import StepOutput
from pdray.engine.sequence import Sequence as EngineSequence

BLOCK_SIZE = 16


def engine_config(
    device: str,
    dtype: str,
    *,
    attention_backend: str = "auto",
    kv_cache_bytes: int = 16 << 20,
    max_tokens_per_step: int = 64,
    max_batch_size: int = 8,
    max_model_len: int = 512,
) -> EngineConfig:
    return EngineConfig(
        block_size=BLOCK_SIZE,
        kv_cache_bytes=kv_cache_bytes,
        max_tokens_per_step=max_tokens_per_step,
        max_batch_size=max_batch_size,
        max_model_len=max_model_len,
        attention_backend=attention_backend,
        device=device,
        dtype=dtype,
        num_threads=None,
        tensor_parallel=1,
    )


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def add_greedy(engine: Engine, prompts: list[list[int]], num_tokens: int) -> list[EngineSequence]:
    """To the engine's queue; they end at ``num_tokens`` and by nothing else."""
    sequences = [
        greedy_sequence(prompt, num_tokens, str(number)) for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        engine.add(sequence)
    return sequences


def steps(engine: Engine) -> Iterator[StepOutput]:
    """Until all is done."""
    while engine.wait_for_work(0):
        yield engine.step()
