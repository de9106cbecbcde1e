"""The truth that engines are compared with: ``transformers`` ``generate(do_sample=False)``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NEAR_TIE = 1e-3
"""Between the two best logits: chunks and batches move them by up to 2e-4 (DESIGN.md)."""

_MAX_BATCH = 8
_MAX_PADDED = 2
_FREE_PADDING = 16
"""A prompt is padded to so many times its length at most, and to so many tokens more."""


@dataclass(frozen=True, slots=True)
class ReferenceTokens:
    token_ids: list[int]
    gaps: list[float]
    """Best logit minus second best, for each token."""


class Reference:
    def __init__(self, path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        self._model = model.eval()
        # Runs as many tokens as it is asked for.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(self, prompt: list[int], num_tokens: int) -> ReferenceTokens:
        return self._generate([prompt], num_tokens)[0]

    def generate_all(self, prompts: Sequence[list[int]], num_tokens: int) -> list[ReferenceTokens]:
        """The same of each, several at a time, which for a real model costs little more than one
        alone: those of like lengths, as the shorter ones are padded."""
        references: dict[int, ReferenceTokens] = {}
        left = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        while left:
            longest = _MAX_PADDED * len(prompts[left[0]]) + _FREE_PADDING
            batch = [index for index in left[:_MAX_BATCH] if len(prompts[index]) <= longest]
            del left[: len(batch)]
            answers = self._generate([prompts[index] for index in batch], num_tokens)
            references.update(zip(batch, answers, strict=True))
        return [references[index] for index in range(len(prompts))]

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> list[ReferenceTokens]:
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        rows = [[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        output = self._model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            max_new_tokens=num_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        best_two = torch.stack([logits.topk(2).values for logits in output.logits], dim=1)
        gaps = best_two[..., 0] - best_two[..., 1]
        return [
            ReferenceTokens(token_ids=token_ids.tolist(), gaps=gaps_of_row.tolist())
            for token_ids, gaps_of_row in zip(output.sequences[:, width:], gaps, strict=True)
        ]


def assert_equal_up_to_ties(
    what: str, outputs: Iterable[list[int]], references: Iterable[ReferenceTokens]
) -> None:
    """Tokens are equal, or differ first where the reference nearly tied; prints how often."""
    num_tokens = num_ties = 0
    for index, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        assert len(output) == len(reference.token_ids), f"{what}: sequence {index}"
        for position, (token_id, expected) in enumerate(
            zip(output, reference.token_ids, strict=True)
        ):
            num_tokens += 1
            if token_id != expected:
                gap = reference.gaps[position]
                assert gap < NEAR_TIE, (
                    f"{what}: sequence {index} has token {token_id} for {expected} at output "
                    f"index {position}, where the reference's best two are {gap:.5f} apart"
                )
                num_ties += 1
                break
    print(f"{what}: {num_ties} near ties broken another way in {num_tokens} tokens compared")
