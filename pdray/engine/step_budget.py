"""How much goes into one step: tokens, seats, and the time that those who decode are promised."""

from __future__ import annotations

from typing import Protocol

from pdray.core.step_time import StepTime, StepWork

FLOOR_TOKENS = 16
"""Of a prompt that every step computes, whatever it takes: prompts are never starved."""
FIRST_GUESS_TOKENS = 128
"""As many beside decodes until it is known how long they take."""


class KnownStepTimes(Protocol):
    """What is known of how long steps take: a StepTimeFit, but for whoever only foretells."""

    @property
    def step_time(self) -> StepTime | None: ...

    @property
    def high_ratio(self) -> float: ...

    def knows(self, *, prompts: bool) -> bool: ...


class StepBudget:
    """Read by the scheduler before each step. With ``itl_s`` a step that has decodes in it should
    take no longer than that, nearly always: what is foretold is held below it by as much as steps
    are seen to exceed what was foretold of them. Without, tokens and seats alone count."""

    def __init__(
        self,
        fit: KnownStepTimes,
        *,
        max_tokens_per_step: int,
        max_batch_size: int,
        itl_s: float | None = None,
    ) -> None:
        self._fit = fit
        self._itl_s = itl_s
        self.max_tokens_per_step = max_tokens_per_step
        self.max_batch_size = max_batch_size

    def chunk_tokens(self, work: StepWork, start: int, max_tokens: int) -> int:
        """Tokens of a prompt from ``start`` on to be computed beside ``work``, up to
        ``max_tokens``; 0 where there is room for none."""
        if self._itl_s is None or work.num_decodes == 0:
            return max_tokens
        is_first = work.num_prefill_tokens == 0
        if not self._fit.knows(prompts=True):
            return min(max_tokens, FIRST_GUESS_TOKENS) if is_first else 0
        step_time = self._fit.step_time
        assert step_time is not None, "it knows"
        num_tokens = step_time.chunk_within(self._limit_s(), work, start, max_tokens)
        if num_tokens < FLOOR_TOKENS:
            return min(max_tokens, FLOOR_TOKENS) if is_first else 0
        # A whole number of tiles costs less for each token.
        return max_tokens if num_tokens == max_tokens else num_tokens - num_tokens % FLOOR_TOKENS

    def num_seats(self, decodes: StepWork) -> int:
        """How many sequences like these may decode together: as many as keep to the target, with
        a prompt's floor beside them; one at least, and all where not even one keeps to it."""
        step_time = self._fit.step_time
        is_known = step_time is not None and self._fit.knows(prompts=False)
        if self._itl_s is None or not is_known or decodes.num_decodes == 0:
            return self.max_batch_size
        assert step_time is not None, "it knows"
        context_tokens = decodes.num_context_tokens / decodes.num_decodes
        each_s = step_time.decode_s + step_time.context_token_s * context_tokens
        floor_s = step_time.prefill_base_s + step_time.prefill_token_s * FLOOR_TOKENS
        left_s = self._limit_s() - step_time.base_s - floor_s
        if left_s < each_s or each_s * self.max_batch_size <= left_s:
            return self.max_batch_size
        return int(left_s / each_s)

    def _limit_s(self) -> float:
        assert self._itl_s is not None, "no target"
        return self._itl_s / self._fit.high_ratio
