"""How long an engine's step takes, by what is in it: read by the scheduler, by placement and by
whoever foretells.

Linear in the work, with a part that every step costs: DistServe's forms (Zhong et al., OSDI '24,
appendix A) for prompts, a + b tokens + c squares, and for decodes, a + b batch + c context, in one,
as a step may have both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one step computes. ``num_prefill_pairs`` are those of a prompt's token and a token that
    it attends to, itself among them, of all chunks; ``num_context_tokens`` are those that all
    decodes together attend to. Sliding windows are not looked at: the fit is of what is counted.
    """

    num_prefill_tokens: int = 0
    num_prefill_pairs: int = 0
    num_decodes: int = 0
    num_context_tokens: int = 0

    def with_chunk(self, start: int, num_tokens: int) -> StepWork:
        """And a prompt's tokens at positions [start, start + num_tokens)."""
        return StepWork(
            num_prefill_tokens=self.num_prefill_tokens + num_tokens,
            num_prefill_pairs=self.num_prefill_pairs + _pairs(start, num_tokens),
            num_decodes=self.num_decodes,
            num_context_tokens=self.num_context_tokens,
        )

    def with_decode(self, num_context_tokens: int) -> StepWork:
        """And one more token of a sequence that has ``num_context_tokens``."""
        return StepWork(
            num_prefill_tokens=self.num_prefill_tokens,
            num_prefill_pairs=self.num_prefill_pairs,
            num_decodes=self.num_decodes + 1,
            num_context_tokens=self.num_context_tokens + num_context_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds for every step, and for each of what is in it; none is negative. ``prefill_base_s``:
    for a step that has prompts in it at all, where steps of decodes alone are repeated from
    recordings."""

    base_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_s: float
    context_token_s: float
    prefill_base_s: float = 0.0

    def step_s(self, work: StepWork) -> float:
        return (
            self.base_s
            + (self.prefill_base_s if work.num_prefill_tokens else 0.0)
            + self.prefill_token_s * work.num_prefill_tokens
            + self.prefill_pair_s * work.num_prefill_pairs
            + self.decode_s * work.num_decodes
            + self.context_token_s * work.num_context_tokens
        )

    def decodes_s(self, num_decodes: int, num_context_tokens: int) -> float:
        """A step with nothing but decodes in it."""
        return self.base_s + self.decode_s * num_decodes + self.context_token_s * num_context_tokens

    def chunk_s(self, start: int, num_tokens: int) -> float:
        """What a prompt's tokens at positions [start, start + num_tokens) add to a step that has
        prompts in it."""
        mean_pairs = start + (num_tokens + 1) / 2
        return (self.prefill_token_s + self.prefill_pair_s * mean_pairs) * num_tokens

    def chunk_within(self, seconds: float, work: StepWork, start: int, max_tokens: int) -> int:
        """The most tokens of a prompt from position ``start`` on, up to ``max_tokens``, that can
        join a step with ``work`` in it before that takes longer than ``seconds``; 0 where it does
        already."""
        left_s = seconds - self.step_s(work)
        if work.num_prefill_tokens == 0:
            left_s -= self.prefill_base_s
        if left_s <= 0.0:
            return 0
        # pair_s / 2 * n^2 + token_s * n = left_s, of which the positive root.
        token_s = self.prefill_token_s + self.prefill_pair_s * (start + 0.5)
        root = math.sqrt(token_s * token_s + 2.0 * self.prefill_pair_s * left_s)
        if (token_s + root) * max_tokens <= 2.0 * left_s:
            return max_tokens
        return int(2.0 * left_s / (token_s + root))


def _pairs(start: int, num_tokens: int) -> int:
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2
