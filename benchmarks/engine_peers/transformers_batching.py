"""transformers' continuous batching, by the timestamps that it gives its own tokens."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.engine_peers.cases import MAX_STEP_TOKENS


class TransformersBatchingPeer:
    def __init__(self, model: Path, dtype: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self._model.eval()

    def decode_steps(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        # The sequence that starts last sees decode steps of the whole batch only.
        last = max(self._generate(prompts, num_steps + 1), key=lambda times: times[0])
        return [after - before for before, after in itertools.pairwise(last)]

    def prefill(self, prompts: list[list[int]]) -> float:
        started_at = time.perf_counter()
        first_tokens = [times[0] for times in self._generate(prompts, 1)]
        return max(first_tokens) - started_at

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[float]]:
        outputs = self._model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                max_new_tokens=max_tokens, do_sample=False, eos_token_id=-1
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                max_batch_tokens=MAX_STEP_TOKENS, max_memory_percent=0.2
            ),
            record_timestamps=True,
        )
        return [output.timestamps or [] for output in outputs.values()]
