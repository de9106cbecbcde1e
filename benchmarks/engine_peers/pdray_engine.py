"""pdray's engine alone: no Ray, no frontend, steps called by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.engine_peers.cases import MAX_BATCH, MAX_MODEL_LEN
from benchmarks.engine_peers.prefixes import Answer
from benchmarks.greedy import greedy_sequence
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.outputs import StepOutput
from pdray.engine.sequence import Sequence

MAX_STEP_TOKENS = 1024
"""Longer steps are no faster here: the matrix kernels are busy, and memory is used up sooner."""


class PdrayPeer:
    def __init__(
        self, model: Path, dtype: str, num_threads: int, *, max_model_len: int = MAX_MODEL_LEN
    ) -> None:
        self._engine = Engine.load(
            model,
            EngineConfig(
                block_size=16,
                kv_cache_bytes=2 << 30,
                max_tokens_per_step=MAX_STEP_TOKENS,
                max_batch_size=MAX_BATCH,
                max_model_len=max_model_len,
                attention_backend="auto",
                device="cpu",
                dtype=dtype,
                num_threads=num_threads,
                tensor_parallel=1,
            ),
        )

    def decode_steps(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        self._add(prompts, num_steps + 1)
        return [
            step.step_s
            for step in self._steps()
            if step.num_prefill_tokens == 0 and step.num_decode_tokens == len(prompts)
        ]

    def prefill(self, prompts: list[list[int]]) -> float:
        started_at = time.perf_counter()
        self._add(prompts, 1)
        for _ in self._steps():
            pass
        return time.perf_counter() - started_at

    def first_token(self, prompt: list[int]) -> Answer:
        started_at = time.perf_counter()
        (sequence,) = self._add([prompt], 1)
        for _ in self._steps():
            pass
        elapsed_s = time.perf_counter() - started_at
        return Answer(seconds=elapsed_s, cached_tokens=sequence.num_cached_tokens or 0)

    def _add(self, prompts: list[list[int]], max_tokens: int) -> list[Sequence]:
        sequences = [
            greedy_sequence(prompt, max_tokens, str(number))
            for number, prompt in enumerate(prompts)
        ]
        for sequence in sequences:
            self._engine.add(sequence)
        return sequences

    def _steps(self) -> Iterator[StepOutput]:
        while self._engine.wait_for_work(0):
            yield self._engine.step()
