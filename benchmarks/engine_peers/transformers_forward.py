"""transformers' own model and cache, called as ``generate`` calls them."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache


class TransformersForwardPeer:
    def __init__(self, model: Path, dtype: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model.eval()

    @torch.inference_mode()
    def decode_steps(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        cache = DynamicCache(config=self._model.config)
        token_ids = self._next(torch.tensor(prompts), cache)
        seconds = []
        for _ in range(num_steps):
            started_at = time.perf_counter()
            token_ids = self._next(token_ids, cache)
            seconds.append(time.perf_counter() - started_at)
        return seconds

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]]) -> float:
        started_at = time.perf_counter()
        self._next(torch.tensor(prompts), DynamicCache(config=self._model.config))
        return time.perf_counter() - started_at

    def _next(self, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        output = self._model(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        best: torch.Tensor = output.logits.argmax(dim=-1)
        return best
