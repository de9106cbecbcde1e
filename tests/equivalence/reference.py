"""The truth that engines are compared with: ``transformers`` ``generate(do_sample=False)``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

NEAR_TIE = 1e-3
"""Between the two best logits: chunks and batches move them by up to 2e-4 (DESIGN.md)."""


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
        input_ids = torch.tensor([prompt])
        output = self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        best_two = [logits[0].topk(2).values for logits in output.logits]
        return ReferenceTokens(
            token_ids=output.sequences[0, len(prompt) :].tolist(),
            gaps=[float(first - second) for first, second in best_two],
        )


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
