"""Tool calls out of an answer's text as it comes. How the text was split changes nothing but how
the pieces are: what is whole is shown at once, what may be a mark's beginning is held back."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from pdray.frontend.tool_syntax import ToolSyntax


@dataclass(frozen=True, slots=True)
class TextPiece:
    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """Of the answer's call number ``index``: its name first, then its arguments' text."""

    index: int
    name: str | None
    arguments: str


AnswerPiece = TextPiece | CallPiece


class AnswerParser(Protocol):
    """One answer's. ``flush`` once, at its end."""

    def push(self, text: str) -> list[AnswerPiece]: ...

    def flush(self) -> list[AnswerPiece]: ...


class State(enum.Enum):
    """::

    START -> TEXT -> CALL -> ARGUMENTS -> REST -> TEXT
              ^       |
              +-------+  it was no call
    """

    START = enum.auto()
    TEXT = enum.auto()
    CALL = enum.auto()
    ARGUMENTS = enum.auto()
    REST = enum.auto()


# A name holds no "<", so that a call's end mark is never within its head.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\<]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)


class ToolCallParser:
    """For calls that are JSON. White space around calls is dropped; what looks like a call and is
    none stays text. ``names`` are the tools: an answer without marks is a call of one of them or
    none at all."""

    def __init__(self, syntax: ToolSyntax, names: Collection[str]) -> None:
        self._begin, self._end = syntax.begin, syntax.end
        self._names = names
        self._state = State.TEXT if syntax.begin else State.START
        self._held = ""
        self._scan = ObjectScan()
        self._num_calls = 0
        self._is_after_call = False
        self._pieces: list[AnswerPiece] = []

    def push(self, text: str) -> list[AnswerPiece]:
        self._held += text
        while self._advance():
            pass
        return self._take()

    def flush(self) -> list[AnswerPiece]:
        held, self._held = self._held, ""
        match self._state:
            case State.TEXT | State.START if held.strip() or not self._is_after_call:
                self._show(held)
            case State.CALL:
                self._end_call(held, self._begin + held)
            case _:
                pass
        return self._take()

    def _take(self) -> list[AnswerPiece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _advance(self) -> bool:
        """One state's work on what is held; False when it needs more text."""
        match self._state:
            case State.START:
                return self._start()
            case State.TEXT:
                return self._read_text()
            case State.CALL:
                return self._read_call()
            case State.ARGUMENTS:
                return self._read_arguments()
            case State.REST:
                return self._read_rest()

    def _start(self) -> bool:
        """Without marks: a call begins with its brace."""
        if not self._held.strip():
            return False
        self._state = State.CALL if self._held.lstrip().startswith("{") else State.TEXT
        return True

    def _read_text(self) -> bool:
        if not self._begin:
            self._show(self._held)
            self._held = ""
            return False
        before, mark, after = self._held.partition(self._begin)
        if mark:
            self._show(before.rstrip())
            self._held, self._state, self._scan = after, State.CALL, ObjectScan()
            return True
        shown = self._held[: len(self._held) - num_begun(self._held, self._begin)].rstrip()
        self._show(shown)
        self._held = self._held[len(shown) :]
        return False

    def _read_call(self) -> bool:
        head = _HEAD.match(self._held)
        if head is not None and (self._begin or head[1] in self._names):
            self._pieces.append(CallPiece(self._num_calls, head[1], ""))
            self._held = self._held[head.end() :]
            self._state, self._scan = State.ARGUMENTS, ObjectScan()
            return True
        if self._begin:
            body, mark, after = self._held.partition(self._end)
        else:
            is_whole = self._scan.feed(self._held[self._scan.num_read :])
            mark = "}" if is_whole else ""
            body, after = self._held[: self._scan.num_read], self._held[self._scan.num_read :]
        if not mark:
            return False
        self._held = after
        self._end_call(body, f"{self._begin}{body}{self._end}")
        self._state = State.TEXT
        return True

    def _end_call(self, body: str, text: str) -> None:
        call = parse_call(body)
        if call is None or not (self._begin or call[0] in self._names):
            self._show(text)
            return
        self._pieces.append(CallPiece(self._num_calls, call[0], call[1]))
        self._close_call()

    def _read_arguments(self) -> bool:
        start = self._scan.num_read
        is_whole = self._scan.feed(self._held)
        shown = self._held[: self._scan.num_read - start]
        if shown:
            self._pieces.append(CallPiece(self._num_calls, None, shown))
        self._held = self._held[len(shown) :]
        if not is_whole:
            return False
        self._close_call()
        self._state = State.REST
        return True

    def _close_call(self) -> None:
        self._num_calls += 1
        self._is_after_call = True

    def _read_rest(self) -> bool:
        """Up to the call's end: its closing brace at least."""
        _, mark, after = self._held.partition(self._end or "}")
        if mark:
            self._held, self._state = after, State.TEXT
        return bool(mark)

    def _show(self, text: str) -> None:
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._pieces.append(TextPiece(text))


class ObjectScan:
    """Finds the end of a JSON object that is read in pieces, white space before it included."""

    def __init__(self) -> None:
        self.num_read = 0
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def feed(self, text: str) -> bool:
        """Whether the object ends in this text: after ``num_read`` characters of all."""
        for char in text:
            self.num_read += 1
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = char == "\\"
                self._is_in_string = char != '"'
            elif char == '"':
                self._is_in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return True
        return False


def parse_call(body: str) -> tuple[str, str] | None:
    """(name, arguments as JSON) of a call that has come whole; None where it is none."""
    try:
        call = json.loads(body)
    except ValueError:
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        return call["name"], arguments
    return call["name"], json.dumps(arguments or {}, ensure_ascii=False)


def num_begun(text: str, mark: str) -> int:
    """Length of the longest end of the text that the mark begins with."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
