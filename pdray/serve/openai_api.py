"""OpenAI's request bodies, checked: ``parse_completion`` and ``parse_chat`` are the doors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pdray.core.errors import InvalidRequestError
from pdray.serve.request_checks import parse_body, shown

TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
DEFAULT_COMPLETION_TOKENS = 16


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is set; accepted: only together with stream: true")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

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

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt: a text, or its tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [item for item in self.prompt if isinstance(item, int)]
        if tokens:
            return [tokens]
        return [item for item in self.prompt if not isinstance(item, int)]


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn. Clients send back what they got, so an answer's empty fields are taken."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_template_takes_it(self) -> dict[str, str]:
        content = self.content
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content}


class ChatBody(_GenerationBody):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


GenerationBody = CompletionBody | ChatBody


def parse_completion(data: object) -> CompletionBody:
    """Raises InvalidRequestError."""
    return parse_body(CompletionBody, data)


def parse_chat(data: object) -> ChatBody:
    """Raises InvalidRequestError."""
    if isinstance(data, Mapping):
        refuse_unsupported_turns(data.get("messages"))
    return parse_body(ChatBody, data)


def refuse_unsupported_turns(messages: object) -> None:
    """Says of tools, images and the like that they are not supported, rather than malformed."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, Mapping):
            continue
        where = f"messages[{index}]"
        if message.get("role") in ("tool", "function"):
            raise unsupported(f"{where}.role", message["role"])
        for name in ("tool_calls", "function_call", "tool_call_id", "audio", "prefix"):
            if message.get(name):
                raise unsupported(f"{where}.{name}", message[name])
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type", "text") != "text":
                raise unsupported(f"{where}.content.type", part["type"])


def unsupported(where: str, value: object) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where} = {shown(value)} is not supported in this version; accepted: text content of "
        "the roles system, developer, user and assistant",
        param="messages",
        code="unsupported_parameter",
    )
