"""The same events through the same code: the same decisions, or where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pdray.control.controller import ControlPlane
from pdray.control.journal import Told

from .entry import Entry, encode
from .segments import read_segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The ``number``-th event of a segment, as it was logged and as it came out now."""

    number: int
    logged: bytes
    replayed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """``differences`` has the first ones only."""

    num_events: int
    differences: tuple[Difference, ...]


def replay(path: Path, max_differences: int = 10) -> Replayed:
    """One segment. Raises EventLogError for what cannot be read."""
    control, entries = read_segment(path)
    differences: list[Difference] = []
    num_events = 0
    for entry, told in tell(control, entries):
        line = encode(told)
        if line != entry.line and len(differences) < max_differences:
            differences.append(Difference(number=num_events, logged=entry.line, replayed=line))
        num_events += 1
    return Replayed(num_events=num_events, differences=tuple(differences))


def tell(control: ControlPlane, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Told]]:
    """Every entry with what has come of it now, one after the other."""
    told: list[Told] = []
    control.journal = told.append
    for entry in entries:
        entry.apply(control)
        control.take_decisions()
        control.take_role_flips()
        yield entry, told.pop()
