"""What is told to placement of the prefix cache: which names came and went, tier by tier."""

from __future__ import annotations

import threading

from pdray.core.prefix_report import KVTier, NameChanges, PrefixReport
from pdray.kvcache.block_pool import BlockPool
from pdray.kvcache.layout import KVGroup
from pdray.kvcache.name_log import NameLog

MAX_NAMES = 4096
"""In one report: what is more goes with the next ones."""


class ToldPrefixes:
    """Of one engine. Any thread may call it: it takes the engine's lock."""

    def __init__(
        self, groups: tuple[KVGroup, ...], pool: BlockPool, lock: threading.Condition
    ) -> None:
        self._pool = pool
        self._lock = lock
        self._log = NameLog(KVTier.DEVICE, told_group(groups).group_id)
        self._next_number = 0
        pool.index.log = self._log

    def start_again(self) -> None:
        """Nobody knows what was told so far."""
        with self._lock:
            self._next_number = 0
            self._log.start_again(self._pool.index.names())

    def take(self) -> PrefixReport | None:
        """What is new; None where nothing is, but for the first report, which is made of nothing
        if need be."""
        with self._lock:
            changes = self._log.take(MAX_NAMES)
            return self._report(() if changes is None else (changes,))

    def _report(self, changes: tuple[NameChanges, ...]) -> PrefixReport | None:
        if not changes and self._next_number > 0:
            return None
        number, self._next_number = self._next_number, self._next_number + 1
        return PrefixReport(number=number, changes=changes)


def told_group(groups: tuple[KVGroup, ...]) -> KVGroup:
    """The group whose blocks stand for all: one that keeps every block of a prefix, if any does."""
    return next((group for group in groups if group.sliding_window is None), groups[0])
