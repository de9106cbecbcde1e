"""OpenAI's request bodies, checked: ``parse_completion`` and ``parse_chat`` are the doors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pdray.serve.chat_messages import ChatMessage, refuse_unsupported_turns
from pdray.serve.output_format import ResponseFormat, StructuredOutputs
from pdray.serve.request_checks import parse_body
from pdray.serve.tools import ToolChoice, Tools

TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TopCount = Annotated[int, Field(ge=0, le=20)]
"""How many likeliest tokens may be asked for: OpenAI's and vLLM's limit."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
DEFAULT_COMPLETION_TOKENS = 16


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _GenerationBody(_Body):
    """What both endpoints take."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        default_factory=list
    )
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    logit_bias: Annotated[
        dict[
            Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
            Annotated[float, Field(ge=-100, le=100)],
        ],
        Field(max_length=1024),
    ] = Field(default_factory=dict)
    min_tokens: Annotated[int, Field(ge=0)] = 0
    prompt_logprobs: TopCount | None = None
    include_stop_str_in_output: bool = False
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    session_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("prompt_logprobs")
    @classmethod
    def _none_in_a_stream(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise ValueError(f"{value} together with stream: true; accepted: without a stream")
        return value

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is set; accepted: only together with stream: true")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def bias_of_tokens(self) -> dict[int, float]:
        return {int(token_id): bias for token_id, bias in self.logit_bias.items()}

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionBody(_GenerationBody):
    """The body of /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
    )
    echo: bool = False
    logprobs: TopCount | Literal[False] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return None if self.logprobs is False else self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """An echoed prompt has logprobs as its completion has."""
        wanted = [self.prompt_logprobs, self.num_logprobs if self.echo else None]
        return max((each for each in wanted if each is not None), default=None)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt: a text, or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [item for item in self.prompt if isinstance(item, int)]
        if tokens:
            return [tokens]
        return [item for item in self.prompt if not isinstance(item, int)]


class ChatBody(_GenerationBody):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Tools = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    logprobs: bool = False
    top_logprobs: TopCount = 0

    @field_validator("top_logprobs")
    @classmethod
    def _top_logprobs_need_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs"):
            raise ValueError(f"{value} without logprobs: true; accepted: together with it")
        return value

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs

    @property
    def offers_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"


GenerationBody = CompletionBody | ChatBody


def parse_completion(data: object) -> CompletionBody:
    """Raises InvalidRequestError."""
    return parse_body(CompletionBody, data)


def parse_chat(data: object) -> ChatBody:
    """Raises InvalidRequestError."""
    if isinstance(data, Mapping):
        refuse_unsupported_turns(data.get("messages"))
    return parse_body(ChatBody, data)
