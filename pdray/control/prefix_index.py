"""Which workers have the KV of which prefixes, as far as they have told: a guess, as they evict
meanwhile. A wrong one costs time only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pdray.core.prefix_report import KVTier, PrefixReport, name_numbers
from pdray.core.request import WorkerId

from .name_shards import NameShards

NAMED_TOKENS = 16
"""Asks have a name for every so many tokens; workers for each of their blocks."""
_MAX_FOUND = 8
"""Of those who have the longest prefix, and of those who have half of it."""
_SWEPT_PER_CALL = 64


@dataclass(slots=True)
class _Teller:
    """A worker. Each start of its reports is another holder: what the one before held is garbage
    that is swept by and by."""

    worker_id: WorkerId
    block_size: int
    holder: int | None = None
    next_number: int = 0


class PrefixIndex:
    """Prefixes are the numbers of their names. One that a worker has implies that it has all that
    begin it, mostly: blocks are evicted from the end. So the longest is found by halving, and who
    lacks the first has none."""

    def __init__(self, max_entries: int) -> None:
        self._shards = NameShards(max_entries)
        self._tellers: dict[WorkerId, _Teller] = {}
        self._by_holder: dict[int, _Teller] = {}
        self._num_holders = 0
        self._num_to_sweep = 0
        self._block_sizes: Counter[int] = Counter()
        self._step = 1

    def __len__(self) -> int:
        """Entries, garbage among them."""
        return len(self._shards)

    def join(self, worker_id: WorkerId, block_size: int) -> None:
        self._tellers[worker_id] = _Teller(worker_id, block_size)
        self._count_block_size(block_size, 1)

    def leave(self, worker_id: WorkerId) -> None:
        teller = self._tellers.pop(worker_id, None)
        if teller is not None:
            self._drop_holder(teller)
            self._count_block_size(teller.block_size, -1)

    def report(self, worker_id: WorkerId, report: PrefixReport) -> bool:
        """False where this is not the next of what is known of the worker: it has to start
        again."""
        teller = self._tellers.get(worker_id)
        if teller is None:
            return False
        if report.is_start:
            self._drop_holder(teller)
            teller.holder = self._num_holders
            self._by_holder[teller.holder] = teller
            self._num_holders += 1
        elif teller.holder is None or report.number != teller.next_number:
            return False
        teller.next_number = report.number + 1
        for changes in report.changes:
            for name in name_numbers(changes.removed):
                self._shards.remove(name, teller.holder, changes.tier)
            for name in name_numbers(changes.added):
                self._shards.add(name, teller.holder, changes.tier)
        return True

    def find(self, prefixes: Sequence[int]) -> dict[WorkerId, int]:
        """Workers with how many tokens of the prompt they have: some of those with the most of it,
        and of those with half of that, at least."""
        found: dict[WorkerId, int] = {}

        def is_held(count: int) -> bool:
            return self._shards.has_any(prefixes[count - 1], self._by_holder)

        num_longest = self._halve(len(prefixes), is_held)
        if num_longest:
            self._find_holders(prefixes, num_longest, num_longest, found)
        if num_half := num_longest // 2 // self._step * self._step:
            self._find_holders(prefixes, num_half, num_longest, found)
        return found

    def count_tokens(self, prefixes: Sequence[int], worker_id: WorkerId) -> int:
        """How many tokens of the prompt this worker has."""
        teller = self._tellers.get(worker_id)
        if teller is None or teller.holder is None or not prefixes:
            return 0
        return self._count(prefixes, teller.holder, 0, len(prefixes))

    def tier_of(self, prefix: int, worker_id: WorkerId) -> KVTier | None:
        """Where this worker has the last block of a prefix, if it does."""
        teller = self._tellers.get(worker_id)
        if teller is None or teller.holder is None:
            return None
        return self._shards.tier_of(prefix, teller.holder)

    def sweep(self) -> None:
        """A little of the work of forgetting those who left."""
        if self._num_to_sweep > 0:
            self._shards.sweep(self._by_holder.__contains__, _SWEPT_PER_CALL)
            self._num_to_sweep -= _SWEPT_PER_CALL

    def check_integrity(self) -> None:
        self._shards.check_integrity()
        held = {t.holder for t in self._tellers.values() if t.holder is not None}
        assert held == set(self._by_holder), "a holder is nobody's, or somebody's twice"

    def _find_holders(
        self,
        prefixes: Sequence[int],
        num_least: int,
        num_most: int,
        found: dict[WorkerId, int],
    ) -> None:
        """Those that have so many blocks at least, of whom it is known that they have no more."""
        num_new = 0
        for teller in self._tellers_of(prefixes[num_least - 1]):
            if teller.worker_id not in found:
                assert teller.holder is not None
                tokens = self._count(prefixes, teller.holder, num_least, num_most)
                found[teller.worker_id] = tokens
                num_new += 1
                if num_new == _MAX_FOUND:
                    return

    def _count(self, prefixes: Sequence[int], holder: int, num_least: int, num_most: int) -> int:
        def has(count: int) -> bool:
            return self._shards.has(prefixes[count - 1], holder)

        return self._halve(num_most, has, num_least) * NAMED_TOKENS

    def _halve(self, num_names: int, has: Callable[[int], bool], num_known: int = 0) -> int:
        """How many of the names lead, looked at where every worker has a block's end."""
        low, high = num_known // self._step, num_names // self._step
        if low == 0 and high > 0 and not has(self._step):
            return 0
        while low < high:
            middle = (low + high + 1) // 2
            if has(middle * self._step):
                low = middle
            else:
                high = middle - 1
        return low * self._step

    def _tellers_of(self, prefix: int) -> Iterator[_Teller]:
        for holder in self._shards.holders(prefix):
            teller = self._by_holder.get(holder)
            if teller is not None:
                yield teller

    def _drop_holder(self, teller: _Teller) -> None:
        if teller.holder is not None:
            del self._by_holder[teller.holder]
            teller.holder = None
            self._num_to_sweep = self._shards.num_shards

    def _count_block_size(self, block_size: int, change: int) -> None:
        self._block_sizes[block_size] += change
        if not self._block_sizes[block_size]:
            del self._block_sizes[block_size]
        self._step = math.lcm(*self._block_sizes) // NAMED_TOKENS or 1
