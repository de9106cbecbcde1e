"""When a sequence ends, and why."""

from __future__ import annotations

from collections.abc import Collection

from pdray.core.request import FinishReason
from pdray.engine.sampling.sampled import SampledToken
from pdray.engine.sequence import Sequence


class Ending:
    """The rules of one engine."""

    def __init__(self, *, eos_token_ids: Collection[int], max_sequence_tokens: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_sequence_tokens = max_sequence_tokens

    def finish_reason(self, seq: Sequence, token_id: int) -> FinishReason | None:
        """Of one whose newest token is ``token_id``; None where it goes on, here or elsewhere."""
        sampling = seq.request.sampling
        is_eos = token_id in self._eos_token_ids and not sampling.ignore_eos
        if is_eos or token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self._is_long(seq, 0) else None

    def must_end(self, seq: Sequence) -> bool:
        """Whichever its next token is, it will get no other one here."""
        return seq.is_lent or self._is_long(seq, 1)

    def _is_long(self, seq: Sequence, num_more: int) -> bool:
        """With so many tokens more."""
        # How long a lent one may grow is for the worker that decodes it to say.
        is_full = not seq.is_lent and seq.num_tokens + num_more >= self._max_sequence_tokens
        return is_full or len(seq.output_token_ids) + num_more >= seq.request.sampling.max_tokens


def error_of(seq: Sequence, token: SampledToken | None) -> str | None:
    """Why a sequence that was to get a token got none."""
    if token is None:
        return None
    if seq.grammar_state is not None and seq.grammar_state.error is not None:
        return seq.grammar_state.error
    if token.token_id is None:
        return "the model's output is not a number (NaN or infinite logits)"
    return None
