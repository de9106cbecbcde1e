"""What a simulated worker tells whoever drives the simulation."""

from __future__ import annotations

from typing import Protocol

from pdray.core.request import WorkerId

from .sequence import SimulatedSequence


class WorkerEvents(Protocol):
    """Called in the middle of the worker's own calls: what follows has to wait until they are
    over."""

    def reserve(self, worker_id: WorkerId, seq: SimulatedSequence) -> bool:
        """A prompt is about to run: whether one of those that may decode it has room."""

    def chunk_done(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        """Of a lent one; with the last chunk it has its first token."""

    def finished(self, worker_id: WorkerId, seq: SimulatedSequence) -> None:
        """It has its last token, and its blocks and its seat are free."""

    def has_room(self, worker_id: WorkerId) -> None:
        """Blocks or a seat have come free."""
