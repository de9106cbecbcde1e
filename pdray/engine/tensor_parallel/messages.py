"""What rank 0 and the other ranks of a worker say to each other, besides the batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pdray.engine.config import EngineConfig
from pdray.engine.tensor_parallel.meeting import MeetingPlace


@dataclass(frozen=True, slots=True)
class Begin:
    """The first thing that a follower hears."""

    rank: int
    model_path: Path
    config: EngineConfig
    place: MeetingPlace


@dataclass(frozen=True, slots=True)
class Loaded:
    """A follower's weights are there: it waits for the others."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A follower waits for the first batch. ``layout_text`` must be rank 0's own."""

    layout_text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The last thing that a follower says."""

    reason: str
