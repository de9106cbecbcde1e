"""Tool calls of a chat's choices, in OpenAI's objects."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from msgspec import UNSET

from pdray.core.request import FinishReason
from pdray.frontend.text_stream import TextDelta
from pdray.frontend.tool_calls import AnswerParser, AnswerPiece, CallPiece, TextPiece
from pdray.serve.openai_responses import CalledFunction, Delta, Message, ToolCall

TOOL_CALLS = "tool_calls"


def new_call_id() -> str:
    return f"call_{uuid4().hex[:24]}"


class ToolCallChoice:
    """One choice's answer in pieces."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._has_calls = False

    def deltas(self, delta: TextDelta) -> list[Delta]:
        pieces = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            pieces += self._parser.flush()
        return [self._delta(piece) for piece in pieces]

    def finish_reason(self, finish_reason: FinishReason) -> str:
        """Calls that are all there end an answer; one that was cut off is known by ``length``."""
        is_calling = self._has_calls and finish_reason is FinishReason.STOP
        return TOOL_CALLS if is_calling else finish_reason.value

    def _delta(self, piece: AnswerPiece) -> Delta:
        if isinstance(piece, TextPiece):
            return Delta(content=piece.text)
        self._has_calls = True
        if piece.name is None:
            call = ToolCall(index=piece.index, function=CalledFunction(arguments=piece.arguments))
        else:
            call = ToolCall(
                index=piece.index,
                id=new_call_id(),
                type="function",
                function=CalledFunction(name=piece.name, arguments=piece.arguments),
            )
        return Delta(tool_calls=(call,))


def whole_message(
    text: str, finish_reason: FinishReason | None, make_parser: Callable[[], AnswerParser]
) -> tuple[Message, str | None]:
    """The message of a whole text, and why it ended."""
    parser = make_parser()
    pieces = parser.push(text) + parser.flush()
    content = "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))
    names: list[str] = []
    arguments: list[str] = []
    for piece in pieces:
        if not isinstance(piece, CallPiece):
            continue
        if piece.name is not None:
            names.append(piece.name)
            arguments.append("")
        arguments[piece.index] += piece.arguments
    calls = tuple(
        ToolCall(
            id=new_call_id(),
            type="function",
            function=CalledFunction(name=name, arguments=text),
        )
        for name, text in zip(names, arguments, strict=True)
    )
    if calls and finish_reason is FinishReason.STOP:
        return Message(content=content or None, tool_calls=calls), TOOL_CALLS
    return Message(content=content or (None if calls else ""), tool_calls=calls or UNSET), (
        finish_reason
    )
