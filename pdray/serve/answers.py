"""Puts text into OpenAI's objects: one class for completions, one for chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, UnsetType

from pdray.core.request import FinishReason
from pdray.frontend.text_stream import TextDelta
from pdray.serve.openai_responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Chunk,
    Completion,
    Delta,
    Message,
    Response,
    TextChoice,
    Usage,
)


@dataclass(slots=True)
class Transcript:
    """One choice's text so far."""

    pieces: list[str] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: FinishReason | None = None

    def add(self, delta: TextDelta) -> None:
        self.pieces.append(delta.text)
        self.num_tokens += delta.num_tokens
        self.finish_reason = delta.finish_reason

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What every object of one answer repeats."""

    id: str
    created: int
    model: str
    has_usage_chunk: bool

    @property
    def no_usage_yet(self) -> UnsetType | None:
        return None if self.has_usage_chunk else UNSET


class Answer(Protocol):
    """One API call's answer: whole, or as chunks."""

    def whole(self, transcripts: Sequence[Transcript], usage: Usage) -> Response: ...

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        """None where the delta shows nothing; the first ones open the choice."""

    def usage_chunk(self, usage: Usage) -> Chunk: ...


class TextAnswer:
    """``echoes`` are the prompts' texts, to stand before each choice, or empty."""

    def __init__(self, heading: Heading, echoes: Sequence[str]) -> None:
        self._heading = heading
        self._echoes = list(echoes)

    def whole(self, transcripts: Sequence[Transcript], usage: Usage) -> Completion:
        choices = tuple(
            TextChoice(index=index, text=echo + each.text, finish_reason=each.finish_reason)
            for index, (each, echo) in enumerate(zip(transcripts, self._echoes, strict=True))
        )
        return self._completion(choices, usage)

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        text = self._echoes[index] + delta.text
        self._echoes[index] = ""
        if not text and delta.finish_reason is None:
            return []
        choice = TextChoice(index=index, text=text, finish_reason=delta.finish_reason)
        return [self._completion((choice,), self._heading.no_usage_yet)]

    def usage_chunk(self, usage: Usage) -> Completion:
        return self._completion((), usage)

    def _completion(
        self, choices: tuple[TextChoice, ...], usage: Usage | UnsetType | None
    ) -> Completion:
        heading = self._heading
        return Completion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=choices,
            usage=usage,
        )


class ChatAnswer:
    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._opened: set[int] = set()

    def whole(self, transcripts: Sequence[Transcript], usage: Usage) -> ChatCompletion:
        heading = self._heading
        choices = tuple(
            ChatChoice(
                index=index, message=Message(content=each.text), finish_reason=each.finish_reason
            )
            for index, each in enumerate(transcripts)
        )
        return ChatCompletion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=choices,
            usage=usage,
        )

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        chunks: list[Chunk] = []
        if index not in self._opened:
            self._opened.add(index)
            chunks.append(self._chunk(index, Delta(role="assistant", content="")))
        if delta.text:
            chunks.append(self._chunk(index, Delta(content=delta.text)))
        if delta.finish_reason is not None:
            chunks.append(self._chunk(index, Delta(), delta.finish_reason))
        return chunks

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return self._with_choices((), usage)

    def _chunk(
        self, index: int, delta: Delta, finish_reason: FinishReason | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta, finish_reason=finish_reason)
        return self._with_choices((choice,), self._heading.no_usage_yet)

    def _with_choices(
        self, choices: tuple[ChatChunkChoice, ...], usage: Usage | UnsetType | None
    ) -> ChatChunk:
        heading = self._heading
        return ChatChunk(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=choices,
            usage=usage,
        )
