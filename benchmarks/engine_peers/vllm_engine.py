"""vLLM's engine in this process, steps called by hand. Imports vllm alone: it runs in vLLM's own
environment."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from benchmarks.engine_peers.cases import MAX_BATCH, MAX_MODEL_LEN, MAX_STEP_TOKENS
from benchmarks.engine_peers.prefixes import Answer


class VllmPeer:
    def __init__(
        self,
        model: str,
        dtype: str,
        num_threads: int,
        *,
        max_model_len: int = MAX_MODEL_LEN,
        has_prefix_cache: bool = False,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{num_threads - 1}"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._ids = itertools.count()
        self._engine: Any = LLM(
            model,
            dtype=dtype,
            enforce_eager=True,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(MAX_STEP_TOKENS, max_model_len),
            max_num_seqs=MAX_BATCH,
            enable_prefix_caching=has_prefix_cache,
        ).llm_engine

    def decode_steps(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        counts = self._add(prompts, num_steps + 1)
        seconds = []
        while self._engine.has_unfinished_requests():
            is_decode = min(counts.values()) > 0
            elapsed_s = self._step(counts)
            if is_decode:
                seconds.append(elapsed_s)
        return seconds[:num_steps]

    def prefill(self, prompts: list[list[int]]) -> float:
        started_at = time.perf_counter()
        counts = self._add(prompts, 1)
        while self._engine.has_unfinished_requests():
            self._step(counts)
        return time.perf_counter() - started_at

    def first_token(self, prompt: list[int]) -> Answer:
        started_at = time.perf_counter()
        self._add([prompt], 1)
        outputs: list[Any] = []
        while self._engine.has_unfinished_requests():
            outputs += self._engine.step()
        elapsed_s = time.perf_counter() - started_at
        return Answer(seconds=elapsed_s, cached_tokens=outputs[-1].num_cached_tokens or 0)

    def _add(self, prompts: list[list[int]], max_tokens: int) -> dict[str, int]:
        """Tokens so far by request id."""
        params = self._params(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        counts = {str(next(self._ids)): 0 for _ in prompts}
        for request_id, prompt in zip(counts, prompts, strict=True):
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        return counts

    def _step(self, counts: dict[str, int]) -> float:
        started_at = time.perf_counter()
        outputs = self._engine.step()
        elapsed_s = time.perf_counter() - started_at
        for output in outputs:
            counts[output.request_id] = len(output.outputs[0].token_ids)
        return elapsed_s
