"""OpenAI's responses, chunks and error bodies, as they are sent.

msgspec structs, as a chunk is made and encoded for every token. OpenAI's words (prompt_tokens,
completion_tokens) live here and nowhere else.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all that is sent. Fields that are UNSET do not appear."""

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)


class PromptTokensDetails(Sent, frozen=True, kw_only=True):
    cached_tokens: int


class Usage(Sent, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, num_prompt_tokens: int, num_output_tokens: int, num_cached_tokens: int) -> Usage:
        """Of the prompt's tokens, ``num_cached_tokens`` were not computed for this answer."""
        return cls(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=num_output_tokens,
            total_tokens=num_prompt_tokens + num_output_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
        )


class PhaseTime(Sent, frozen=True, kw_only=True):
    name: str
    ms: float
    worker: str | None


class ChoiceTimeline(Sent, frozen=True, kw_only=True):
    """Each phase begins where the one before it has ended, the first with the request."""

    index: int
    total_ms: float
    phases: tuple[PhaseTime, ...]


class TextLogprobs(Sent, frozen=True, kw_only=True):
    """One entry for each token; None for what nothing came before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Sent, frozen=True, kw_only=True):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's: for each prompt token, by token id, it and the likeliest ones; None for the first."""


class TextChoice(Sent, frozen=True, kw_only=True):
    """A choice of a completion, whole or a chunk of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Sent, frozen=True, kw_only=True):
    """A completion, or a chunk of its stream: the two look the same.

    ``usage`` is null in the chunks before the one with the usage, and absent where that one was
    not asked for. ``timeline`` is ours, in a last chunk of its own where it was asked for.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    timeline: tuple[ChoiceTimeline, ...] | UnsetType = UNSET


class CalledFunction(Sent, frozen=True, kw_only=True):
    """In a chunk: the name first and once, then pieces of the arguments."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(Sent, frozen=True, kw_only=True):
    """``index`` is a chunk's; later ones of a call have that and arguments alone."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunction


class Message(Sent, frozen=True, kw_only=True):
    """``content`` is null where there are calls and no text."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET


class TopLogprob(Sent, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Sent, frozen=True, kw_only=True):
    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(Sent, frozen=True, kw_only=True):
    index: int
    message: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None


class ChatCompletion(Sent, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Delta(Sent, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: tuple[ToolCall, ...] | UnsetType = UNSET


class ChatChunkChoice(Sent, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None


class ChatChunk(Sent, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: Usage | UnsetType | None = UNSET
    timeline: tuple[ChoiceTimeline, ...] | UnsetType = UNSET


class Error(Sent, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Sent, frozen=True, kw_only=True):
    error: Error


class ModelCard(Sent, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["pdray"] = "pdray"
    max_model_len: int | UnsetType = UNSET


class ModelList(Sent, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


Chunk = Completion | ChatChunk
Response = Completion | ChatCompletion
