"""What a client asked for and what it gets back: plain data that every layer shares."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

from pdray.core.errors import IllegalTransitionError
from pdray.core.grammar import Grammar
from pdray.core.logprobs import TokenLogprobs

WorkerId = NewType("WorkerId", str)
"""Names one life of one worker: a restarted worker has another id."""


class FinishReason(enum.StrEnum):
    """Why a request ended well; the first two are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


class RequestState(enum.StrEnum):
    """Where a request is.

    ::

        QUEUED -> PREFILLING -> TRANSFERRING -> DECODING -> FINISHED
          ^           |  |           |             |
          |           |  +-----------|-------------|------> FINISHED (one token, or a stop)
          +-----------+--------------+-------------+  placed again: the next attempt
        and from every state but the last three -> FAILED | CANCELLED
    """

    QUEUED = "queued"
    PREFILLING = "prefilling"
    TRANSFERRING = "transferring"
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return not _NEXT_STATES[self]

    def advance(self, state: RequestState) -> RequestState:
        """Return ``state``; raises IllegalTransitionError where the picture has no such arrow."""
        if state not in _NEXT_STATES[self]:
            raise IllegalTransitionError(f"a request that is {self} cannot become {state}")
        return state


_ENDS = {RequestState.FAILED, RequestState.CANCELLED}
_NEXT_STATES: dict[RequestState, set[RequestState]] = {
    RequestState.QUEUED: {RequestState.PREFILLING} | _ENDS,
    RequestState.PREFILLING: {
        RequestState.TRANSFERRING,
        RequestState.FINISHED,
        RequestState.QUEUED,
    }
    | _ENDS,
    RequestState.TRANSFERRING: {RequestState.DECODING, RequestState.FINISHED, RequestState.QUEUED}
    | _ENDS,
    RequestState.DECODING: {RequestState.FINISHED, RequestState.QUEUED} | _ENDS,
    RequestState.FINISHED: set(),
    RequestState.FAILED: set(),
    RequestState.CANCELLED: set(),
}


MIN_TEMPERATURE = 1e-5
"""Below it, dividing by the temperature loses all but the best token: it is chosen outright."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when they end; the defaults ask for nothing.

    ``seed`` is always set: the frontend draws one where the user gave none, so that a request
    placed again draws the same noise (it is counter-based, per seed and output index).
    Presence and frequency penalties are of output tokens, the repetition penalty is of those of
    the prompt too. Before ``min_tokens`` neither an end-of-sequence nor a stop token is chosen.
    """

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once."""
    min_tokens: int = 0
    logprobs: int | None = None
    """How many of the likeliest tokens to tell of at each output token, besides its own
    logprob; None for neither."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but its first."""
    grammar: Grammar | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    @property
    def is_filtered(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary."""
        return self.top_k is not None or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether the choice depends on the tokens that are there already."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and what is wanted of it; ``n`` choices of one API call are n requests.

    ``output_token_ids`` are those that earlier attempts have already sent to the client: they
    are computed again with the prompt, and count towards ``max_tokens``. Only requests with the
    same ``cache_salt`` share KV in a prefix cache: a tenant's own; None is a salt like others.
    One with a ``session_id`` will be followed by others that begin with it and its output: its
    KV is kept for them in the tiers below the device, where there are any. Of those that wait to
    be placed, the lowest ``priority`` goes first.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    sampling: SamplingParams
    cache_salt: str | None = None
    session_id: str | None = None
    priority: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def max_total_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.sampling.max_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether every prompt token has to be computed for its logprob, cached or not: it goes
        out with the first output token, so not again once an attempt has sent one."""
        return self.sampling.prompt_logprobs is not None and not self.output_token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseAges:
    """What a worker has to say of an attempt's phases when its own first token of it leaves, as
    durations until then: every machine has a clock of its own.

    ``began_s`` is since it began to compute, the prompt or the first decode step. ``ready_s`` is
    since it had the KV that it pulled; None where it has computed the prompt itself.
    """

    began_s: float
    ready_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChunk:
    """New tokens of one attempt of a request; ``index`` is the output index of the first.

    ``decode_worker_id`` is set on a prefill worker's chunk only: who goes on from here.
    ``logprobs`` are of each of ``token_ids``, where they were asked for; ``prompt_logprobs`` of
    the prompt's tokens from the second on, and come with output index 0.
    ``num_cached_tokens``, on the chunk with the attempt's first token, says how many of the
    prompt's tokens had their KV in the prefix cache. ``ages`` come with each worker's first token.
    """

    request_id: str
    attempt: int
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    decode_worker_id: WorkerId | None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    num_cached_tokens: int | None = None
    ages: PhaseAges | None = None
