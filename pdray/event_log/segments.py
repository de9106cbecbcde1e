"""The files of an event log: each begins with all that the control plane knew, so that the oldest
can go and the others can still be replayed.

A line of JSON each: first the checkpoint, then the events.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pdray import __version__
from pdray.control.controller import ControlPlane
from pdray.core.errors import EventLogError

from .checkpoint import dump, restore
from .entry import Entry, decode

SUFFIX = ".events"


class _Header(msgspec.Struct, tag_field="kind", tag="checkpoint"):
    """``opened_at``: seconds since 1970."""

    pdray: str
    opened_at: float
    checkpoint: str


def segment_path(folder: Path, name: str, life: str, number: int) -> Path:
    """``life`` tells logs of one ``name`` apart."""
    return folder / f"{name}.{life}.{number:06d}{SUFFIX}"


def header_of(control: ControlPlane, opened_at: float) -> bytes:
    """A segment's first line, without its end."""
    text = base64.b64encode(dump(control)).decode()
    return msgspec.json.encode(_Header(pdray=__version__, opened_at=opened_at, checkpoint=text))


def segments(folder: Path, name: str = "*") -> list[Path]:
    """The oldest first; of all logs in the folder, or of those of one name."""
    found = folder.glob(f"{name}.*{SUFFIX}")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def read_segment(path: Path) -> tuple[ControlPlane, Iterator[Entry]]:
    """What was known at its begin, and what was told since. Raises EventLogError, also while the
    entries are read; a last line that was cut is left out."""
    lines = whole_lines(path)
    first = next(lines, None)
    if first is None:
        raise EventLogError(f"{path} is empty")
    try:
        header = msgspec.json.decode(first, type=_Header)
    except msgspec.DecodeError as error:
        raise EventLogError(f"{path} is no event log of pdray's: {error}") from error
    if header.pdray != __version__:
        raise EventLogError(
            f"{path} was written by pdray {header.pdray}, this is {__version__}: what it decided "
            "can only be had from the same version"
        )
    return restore(base64.b64decode(header.checkpoint)), (decode(line) for line in lines)


def whole_lines(path: Path) -> Iterator[bytes]:
    """Without their ends, and without a last one that was cut."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]
