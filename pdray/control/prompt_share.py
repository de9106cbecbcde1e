"""Mode auto: which of the workers, that all could, spend their time on prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

from pdray.core.request import WorkerId

from .decaying_sum import DecayingSum
from .worker_record import WorkerRecord

_MEMORY_S = 60.0
"""Of prompts: a lull of some seconds between two of them is not the end."""
_YOUNGEST_S = 10.0
_MAX_LOAD = 0.9
_LEAST_BUSY = 0.02
"""Of one worker: for less than that no worker is kept free of decodes."""
_STAY = 0.15
"""So much fuller may one of them be than another who would take its place: else they would change
with every request."""
_NUM_SPARED = 4


class PromptShare:
    """Prompts go where the fewest sequences decode, as their steps take from these: so of all
    workers the least full compute the prompts, as many as those of late keep busy, and a decode
    that goes to one of the others is not disturbed."""

    def __init__(self) -> None:
        self._compute_s = DecayingSum(_MEMORY_S)
        self._since: float | None = None
        self._load = 0.0
        self._chosen: frozenset[WorkerId] = frozenset()
        self.spared: tuple[WorkerId, ...] = ()
        """The least full of the others."""

    def placed(self, compute_s: float, now: float) -> None:
        """A prompt that takes so long."""
        self._compute_s.add(compute_s, now)
        if self._since is None:
            self._since = now

    def settle(self, by_fullness: Iterable[WorkerRecord], num_workers: int, now: float) -> None:
        """Who computes prompts from now on; ``by_fullness`` has all who may, the least full
        first."""
        busy = self._num_busy(now)
        count = min(math.ceil(busy / _MAX_LOAD), num_workers)
        self._load = min(busy / count, _MAX_LOAD) if count else 0.0
        nearest = list(islice(by_fullness, 2 * count + _NUM_SPARED))
        nearest.sort(key=self._fullness)
        self._chosen = frozenset(record.info.worker_id for record in nearest[:count])
        self.spared = tuple(self._others(nearest[count:]))

    def load_of(self, worker_id: WorkerId) -> float:
        """The share of its time that prompts will take."""
        return self._load if worker_id in self._chosen else 0.0

    def _fullness(self, record: WorkerRecord) -> float:
        stays = record.info.worker_id in self._chosen
        return record.fullness - (_STAY if stays else 0.0)

    def _others(self, records: list[WorkerRecord]) -> Iterator[WorkerId]:
        records.sort(key=lambda record: (record.fullness, record.number))
        return (record.info.worker_id for record in records[:_NUM_SPARED])

    def _num_busy(self, now: float) -> float:
        """Workers that the prompts of late kept busy; of a young memory for as long as it is."""
        if self._since is None:
            return 0.0
        age_s = max(now - self._since, _YOUNGEST_S)
        busy = self._compute_s.at(now) / (_MEMORY_S * -math.expm1(-age_s / _MEMORY_S))
        return busy if busy >= _LEAST_BUSY else 0.0
