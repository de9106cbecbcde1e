"""Workers in the order of a load that changes with every event."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from .worker_record import WorkerRecord

Load = tuple[int, float, int]
_Place = tuple[int, float, int, int, WorkerRecord]
"""A load, and the number of the worker: two places never compare their records."""


class LoadOrder:
    """Least loaded first, of equal loads the worker that joined first. One sorted list: to move a
    worker costs two bisections and two moves of memory, which are small up to 100,000 workers; to
    read the first few costs nothing.

    A load is how full a worker is, then how many requests it decodes; with ``by_backlog`` the
    prompt tokens that it has to compute come before that."""

    def __init__(self, *, by_backlog: bool) -> None:
        self._by_backlog = by_backlog
        self._sorted: list[_Place] = []
        self._places: dict[int, _Place] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[WorkerRecord]:
        """Valid until the next change."""
        return (place[-1] for place in self._sorted)

    def first(self, count: int) -> list[WorkerRecord]:
        return [place[-1] for place in self._sorted[:count]]

    def load_of(self, record: WorkerRecord) -> Load:
        backlog_tokens = record.prefill_backlog_tokens if self._by_backlog else 0
        return backlog_tokens, record.fullness, record.num_decoding

    def put(self, record: WorkerRecord) -> None:
        """In its place, whether or not it had another before."""
        number = record.number
        place = (*self.load_of(record), number, record)
        before = self._places.get(number)
        if before == place:
            return
        if before is not None:
            del self._sorted[bisect_left(self._sorted, before)]
        insort(self._sorted, place)
        self._places[number] = place

    def discard(self, record: WorkerRecord) -> None:
        before = self._places.pop(record.number, None)
        if before is not None:
            del self._sorted[bisect_left(self._sorted, before)]
