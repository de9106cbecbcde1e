"""The two files of a batch, in OpenAI's format: a request a line in, an answer a line out.

An interrupted batch goes on from what its output has; a line that was being written is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import msgspec

from pdray.core.errors import ConfigError, InvalidRequestError
from pdray.serve.openai_api import GenerationBody, parse_chat, parse_completion
from pdray.serve.openai_responses import Sent
from pdray.serve.request_checks import shown

PARSERS: Mapping[str, Callable[[object], GenerationBody]] = {
    "/v1/completions": parse_completion,
    "/v1/chat/completions": parse_chat,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """A line that can be told apart, from 1; its body is not checked yet."""

    number: int
    custom_id: str
    url: str
    body: object

    def parse(self) -> GenerationBody:
        """Raises InvalidRequestError."""
        body = PARSERS[self.url](self.body)
        if body.stream:
            raise InvalidRequestError("stream = true; accepted in a batch: false", param="stream")
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that is no request, and why. ``custom_id`` is None where it has none."""

    number: int
    custom_id: str | None
    problem: str


class LineError(Sent, frozen=True, kw_only=True):
    """``line`` is ours: it tells lines without a custom_id apart."""

    code: str
    message: str
    line: int


class LineResponse(Sent, frozen=True, kw_only=True):
    status_code: int
    request_id: str
    body: Sent


class AnswerLine(Sent, frozen=True, kw_only=True):
    id: str
    custom_id: str | None
    response: LineResponse | None
    error: LineError | None

    @classmethod
    def of_response(cls, line: BatchLine, status: int, body: Sent) -> AnswerLine:
        name = f"batch_req_{uuid4().hex}"
        response = LineResponse(status_code=status, request_id=name, body=body)
        return cls(id=name, custom_id=line.custom_id, response=response, error=None)

    @classmethod
    def of_bad_line(cls, line: BadLine) -> AnswerLine:
        error = LineError(
            code="invalid_line", message=f"line {line.number}: {line.problem}", line=line.number
        )
        name = f"batch_req_{uuid4().hex}"
        return cls(id=name, custom_id=line.custom_id, response=None, error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What an output file has: ids, and the numbers of bad lines without one."""

    custom_ids: frozenset[str]
    line_numbers: frozenset[int]

    def has(self, line: BatchLine | BadLine) -> bool:
        if line.custom_id is None:
            return line.number in self.line_numbers
        return line.custom_id in self.custom_ids


def read_lines(path: Path) -> Iterator[BatchLine | BadLine]:
    """One line at a time; empty ones are passed over. Raises ConfigError for an unreadable file."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield parse_line(number, raw)
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror}") from error


def parse_line(number: int, raw: bytes) -> BatchLine | BadLine:
    try:
        data = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        problem = f"{shown(raw.decode(errors='replace').strip())} is no JSON: {error}"
        return BadLine(number=number, custom_id=None, problem=problem)
    if not isinstance(data, dict):
        problem = f"{shown(data)}; accepted: an object with custom_id, method, url and body"
        return BadLine(number=number, custom_id=None, problem=problem)
    custom_id, method, url = data.get("custom_id"), data.get("method", "POST"), data.get("url")
    if not isinstance(custom_id, str) or not custom_id:
        problem = f"custom_id = {shown(custom_id)}; accepted: a string, not empty"
        return BadLine(number=number, custom_id=None, problem=problem)
    if method != "POST":
        problem = f"method = {shown(method)}; accepted: 'POST'"
        return BadLine(number=number, custom_id=custom_id, problem=problem)
    if not isinstance(url, str) or url not in PARSERS:
        problem = f"url = {shown(url)}; accepted: {', '.join(map(repr, PARSERS))}"
        return BadLine(number=number, custom_id=custom_id, problem=problem)
    return BatchLine(number=number, custom_id=custom_id, url=url, body=data.get("body"))


def check_input(path: Path) -> int:
    """The number of lines. Raises ConfigError where two have the same custom_id."""
    seen: dict[str, int] = {}
    count = 0
    for line in read_lines(path):
        count += 1
        if line.custom_id is None:
            continue
        first = seen.setdefault(line.custom_id, line.number)
        if first != line.number:
            raise ConfigError(
                f"--input {path}: custom_id = {line.custom_id!r} stands in lines {first} and "
                f"{line.number}; accepted: a different one for each line"
            )
    return count


@contextmanager
def open_output(path: Path) -> Iterator[tuple[BinaryIO, Finished]]:
    """Open for more lines, with what is there. Raises ConfigError for a file that is no batch
    output: nothing is lost by a wrong name."""
    try:
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"--output {path}: {error.strerror}") from error
    with file:
        file.seek(0)
        yield file, _read_answers(path, file)


def _read_answers(path: Path, file: BinaryIO) -> Finished:
    """Cuts a last line that is not whole."""
    custom_ids: set[str] = set()
    line_numbers: set[int] = set()
    whole_bytes = 0
    for number, raw in enumerate(file, start=1):
        if not raw.endswith(b"\n"):
            break
        answer = _answer_of(path, number, raw)
        if answer.custom_id is not None:
            custom_ids.add(answer.custom_id)
        elif answer.error is not None:
            line_numbers.add(answer.error.line)
        whole_bytes += len(raw)
    file.truncate(whole_bytes)
    return Finished(custom_ids=frozenset(custom_ids), line_numbers=frozenset(line_numbers))


class _SeenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What resuming needs of an answer's line."""

    id: str
    custom_id: str | None
    error: LineError | None


def _answer_of(path: Path, number: int, raw: bytes) -> _SeenAnswer:
    try:
        return msgspec.json.decode(raw, type=_SeenAnswer)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"--output {path}: line {number} is no batch answer ({error}); accepted: a new file, "
            "or the output of an earlier run to go on with"
        ) from None
