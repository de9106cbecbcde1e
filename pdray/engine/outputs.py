"""What a step of the engine did, for those who tell others of it."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason
from pdray.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """What a step did for one sequence. ``token_ids`` is empty for a prompt's chunk that is not
    the last; a stop token is among them, and ``index`` is its output index. With ``error`` or
    ``finish_reason`` it has ended. Logprobs as in TokenChunk."""

    sequence: Sequence
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_computed_tokens: int
    error: str | None
    logprobs: tuple[TokenLogprobs, ...] | None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None

    @property
    def has_ended(self) -> bool:
        return self.error is not None or self.finish_reason is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What one step did, and took; without ``sequences`` there was nothing to do, or nobody whom
    it was for was there any more. ``foretold_s`` is how long it should have taken; None before
    anything is known of steps."""

    sequences: tuple[SequenceOutput, ...]
    num_prefill_tokens: int
    num_decode_tokens: int
    num_preemptions: int
    step_s: float
    foretold_s: float | None
