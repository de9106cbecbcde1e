"""Puts text into OpenAI's objects: one class for completions, one for chats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, UnsetType, structs

from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason
from pdray.frontend.text_stream import TextDelta
from pdray.frontend.tool_calls import AnswerParser
from pdray.serve.called_tools import ToolCallChoice, whole_message
from pdray.serve.logprobs import LogprobsWriter
from pdray.serve.openai_responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChoiceTimeline,
    Chunk,
    Completion,
    Delta,
    Message,
    PromptLogprobs,
    Response,
    TextChoice,
    TextLogprobs,
    Usage,
)


@dataclass(slots=True)
class Transcript:
    """One choice's text so far."""

    pieces: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None

    def add(self, delta: TextDelta) -> None:
        self.pieces.append(delta.text)
        self.finish_reason = delta.finish_reason
        self.logprobs += delta.logprobs
        self.text_offsets += delta.text_offsets
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

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

    def timeline_chunk(self, timeline: tuple[ChoiceTimeline, ...]) -> Chunk: ...


@dataclass(frozen=True, slots=True)
class LogprobsWriters:
    """How an answer shows logprobs: None where none were asked for."""

    output: LogprobsWriter | None
    prompt: LogprobsWriter | None


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that stands before its choice's text."""

    text: str
    token_ids: tuple[int, ...]


class TextAnswer:
    """``echoes`` has an entry for each choice."""

    def __init__(
        self, heading: Heading, echoes: Sequence[Echo | None], writers: LogprobsWriters
    ) -> None:
        self._heading = heading
        self._echoes = echoes
        self._writers = writers
        self._opened: set[int] = set()

    def whole(self, transcripts: Sequence[Transcript], usage: Usage) -> Completion:
        choices = tuple(
            TextChoice(
                index=index,
                text=self._echo_text(index) + each.text,
                logprobs=self._logprobs(index, each),
                finish_reason=each.finish_reason,
                prompt_logprobs=prompt_logprobs(self._writers, each),
            )
            for index, each in enumerate(transcripts)
        )
        return self._completion(choices, usage)

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        text = delta.text
        if index not in self._opened:
            self._opened.add(index)
            text = self._echo_text(index) + text
        if not text and not delta.logprobs and delta.finish_reason is None:
            return []
        choice = TextChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(index, delta),
            finish_reason=delta.finish_reason,
        )
        return [self._completion((choice,), self._heading.no_usage_yet)]

    def _echo_text(self, index: int) -> str:
        echo = self._echoes[index]
        return "" if echo is None else echo.text

    def _logprobs(self, index: int, source: Transcript | TextDelta) -> TextLogprobs | None:
        """The echoed prompt's first, which come with the first token."""
        writer = self._writers.output
        if writer is None:
            return None
        shift = len(self._echo_text(index))
        output = writer.text(source.logprobs, source.text_offsets, shift)
        echo = self._echoes[index]
        if echo is None or source.prompt_logprobs is None:
            return output
        prompt = writer.echo(echo.token_ids, source.prompt_logprobs)
        return TextLogprobs(
            tokens=prompt.tokens + output.tokens,
            token_logprobs=prompt.token_logprobs + output.token_logprobs,
            top_logprobs=prompt.top_logprobs + output.top_logprobs,
            text_offset=prompt.text_offset + output.text_offset,
        )

    def usage_chunk(self, usage: Usage) -> Completion:
        return self._completion((), usage)

    def timeline_chunk(self, timeline: tuple[ChoiceTimeline, ...]) -> Completion:
        return structs.replace(self._completion((), self._heading.no_usage_yet), timeline=timeline)

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
    """With a parser its texts may have tool calls in them."""

    def __init__(
        self,
        heading: Heading,
        writers: LogprobsWriters,
        make_parser: Callable[[], AnswerParser] | None,
    ) -> None:
        self._heading = heading
        self._writers = writers
        self._make_parser = make_parser
        self._choices: dict[int, ToolCallChoice | None] = {}

    def whole(self, transcripts: Sequence[Transcript], usage: Usage) -> ChatCompletion:
        heading = self._heading
        choices = tuple(self._choice(index, each) for index, each in enumerate(transcripts))
        return ChatCompletion(
            id=heading.id,
            created=heading.created,
            model=heading.model,
            choices=choices,
            usage=usage,
            prompt_logprobs=prompt_logprobs(self._writers, transcripts[0]),
        )

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        chunks: list[Chunk] = []
        if index not in self._choices:
            self._choices[index] = self._make_parser and ToolCallChoice(self._make_parser())
            chunks.append(self._chunk(index, Delta(role="assistant", content="")))
        choice, finish_reason = self._choices[index], delta.finish_reason
        deltas = [Delta(content=delta.text)] if delta.text else []
        if choice is not None:
            deltas = choice.deltas(delta)
        logprobs = self._logprobs(delta)
        if delta.logprobs and not deltas:
            deltas = [Delta(content="")]
        for each in deltas:
            chunks.append(self._chunk(index, each, logprobs=logprobs))
            logprobs = None
        if finish_reason is not None:
            reason = finish_reason if choice is None else choice.finish_reason(finish_reason)
            chunks.append(self._chunk(index, Delta(), reason))
        return chunks

    def _choice(self, index: int, transcript: Transcript) -> ChatChoice:
        message = Message(content=transcript.text)
        reason: str | None = transcript.finish_reason
        if self._make_parser is not None:
            message, reason = whole_message(
                transcript.text, transcript.finish_reason, self._make_parser
            )
        return ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(transcript),
            finish_reason=reason,
        )

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return self._with_choices((), usage)

    def timeline_chunk(self, timeline: tuple[ChoiceTimeline, ...]) -> ChatChunk:
        return structs.replace(
            self._with_choices((), self._heading.no_usage_yet), timeline=timeline
        )

    def _logprobs(self, source: Transcript | TextDelta) -> ChatLogprobs | None:
        writer = self._writers.output
        return None if writer is None else writer.chat(source.logprobs)

    def _chunk(
        self,
        index: int,
        delta: Delta,
        finish_reason: str | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatChunk:
        choice = ChatChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
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


def prompt_logprobs(writers: LogprobsWriters, transcript: Transcript) -> PromptLogprobs | UnsetType:
    if writers.prompt is None or transcript.prompt_logprobs is None:
        return UNSET
    return writers.prompt.prompt(transcript.prompt_logprobs)
