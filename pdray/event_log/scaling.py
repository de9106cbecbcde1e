"""The decisions on pools' numbers in an event log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pdray.core.errors import EventLogError
from pdray.core.scaling import ScalingDecision, TimedDecision

from .segments import segments, whole_lines


class _Arguments(msgspec.Struct):
    unix_time: float


class _Scaled(msgspec.Struct):
    arguments: _Arguments
    answer: list[ScalingDecision]


def read_decisions(folder: Path) -> Iterator[TimedDecision]:
    """The oldest first. Raises EventLogError."""
    for path in segments(folder):
        for line in whole_lines(path):
            if not line.startswith(b'{"event":"scale"'):
                continue
            try:
                scaled = msgspec.json.decode(line, type=_Scaled)
            except msgspec.DecodeError as error:
                raise EventLogError(f"{path}: no event: {line[:80]!r}: {error}") from error
            for decision in scaled.answer:
                yield TimedDecision(unix_time=scaled.arguments.unix_time, decision=decision)
