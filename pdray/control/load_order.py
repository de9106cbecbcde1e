"""Workers in the order of a load that changes with every event."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from .worker_record import WorkerRecord

Load = tuple[int, float, int]


class LoadOrder:
    """Least loaded first, of equal loads the worker that joined first. One sorted list: to move a
    worker costs two bisections and two moves of memory, which are small up to 100,000 workers; to
    read the first few costs nothing."""

    def __init__(self) -> None:
        self._sorted: list[tuple[Load, int, WorkerRecord]] = []
        self._loads: dict[int, Load] = {}

    def __len__(self) -> int:
        return len(self._sorted)

    def __iter__(self) -> Iterator[WorkerRecord]:
        """Valid until the next change."""
        return (record for _, _, record in self._sorted)

    def first(self, count: int) -> list[WorkerRecord]:
        return [record for _, _, record in islice(self._sorted, count)]

    def put(self, record: WorkerRecord, load: Load) -> None:
        """In its place, whether or not it had another before."""
        known = self._loads.get(record.number)
        if known == load:
            return
        if known is not None:
            self._delete(known, record.number)
        insort(self._sorted, (load, record.number, record))
        self._loads[record.number] = load

    def discard(self, record: WorkerRecord) -> None:
        known = self._loads.pop(record.number, None)
        if known is not None:
            self._delete(known, record.number)

    def _delete(self, load: Load, number: int) -> None:
        # Two entries, one of which is shorter, never compare their records.
        del self._sorted[bisect_left(self._sorted, (load, number))]
