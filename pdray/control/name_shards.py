"""Pairs of a name and a holder, many millions of them in little memory.

Sorted arrays, cut by the names' first bits so that none grows long: an entry costs 12 bytes and
what the arrays keep in reserve, a lookup two bisections. A dict costs 80 bytes, and is twice as
fast.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator
from typing import TypeAlias

from pdray.core.prefix_report import KVTier

_NAME_BITS = 64
_SHARD_ENTRIES = 512
_TIER_BITS = 3
_TIER_MASK = (1 << _TIER_BITS) - 1


Shard: TypeAlias = "tuple[array[int], array[int]]"
"""Names, and for each its holder and, in the lowest bits, where that has it."""
_NO_SHARD: Shard = (array("Q"), array("I"))


class NameShards:
    """A holder is a number below 2^29. Past ``max_entries``, each new entry takes the place of
    some other."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        bits = (max_entries // _SHARD_ENTRIES).bit_length()
        self._shift = _NAME_BITS - bits
        self.num_shards = 1 << bits
        self._shards: dict[int, Shard] = {}
        self._num_entries = 0
        self._next_swept = 0

    def __len__(self) -> int:
        return self._num_entries

    def add(self, name: int, holder: int, tier: KVTier) -> None:
        names, holders = self._shard(name)
        place = _place(names, holders, name, holder)
        if _is_at(names, holders, place, name, holder):
            holders[place] |= tier.value
            return
        if names is _NO_SHARD[0]:
            names, holders = self._shards[name >> self._shift] = (array("Q"), array("I"))
        if self._num_entries >= self._max_entries:
            if not names:
                return
            victim = name % len(names)
            del names[victim], holders[victim]
            self._num_entries -= 1
            place -= victim < place
        names.insert(place, name)
        holders.insert(place, holder << _TIER_BITS | tier.value)
        self._num_entries += 1

    def remove(self, name: int, holder: int, tier: KVTier) -> None:
        """Does nothing where it is not there: others have taken its place."""
        names, holders = self._shard(name)
        place = _place(names, holders, name, holder)
        if not _is_at(names, holders, place, name, holder):
            return
        left = holders[place] & ~tier.value
        if left & _TIER_MASK:
            holders[place] = left
        else:
            del names[place], holders[place]
            self._num_entries -= 1

    def has(self, name: int, holder: int) -> bool:
        names, holders = self._shard(name)
        return _is_at(names, holders, _place(names, holders, name, holder), name, holder)

    def has_any(self, name: int, wanted: Container[int]) -> bool:
        """Whether a wanted holder has it."""
        names, holders = self._shards.get(name >> self._shift, _NO_SHARD)
        place, end = bisect_left(names, name), len(names)
        while place < end and names[place] == name:
            if holders[place] >> _TIER_BITS in wanted:
                return True
            place += 1
        return False

    def tier_of(self, name: int, holder: int) -> KVTier | None:
        """Where this holder has it, if it does."""
        names, holders = self._shard(name)
        place = _place(names, holders, name, holder)
        if not _is_at(names, holders, place, name, holder):
            return None
        return KVTier(holders[place] & _TIER_MASK)

    def holders(self, name: int) -> Iterator[int]:
        """Valid until the next change."""
        names, holders = self._shard(name)
        place = bisect_left(names, name)
        while place < len(names) and names[place] == name:
            yield holders[place] >> _TIER_BITS
            place += 1

    def sweep(self, is_wanted: Callable[[int], bool], num_shards: int) -> None:
        """Drops entries of unwanted holders from the next so many shards."""
        for _ in range(min(num_shards, self.num_shards)):
            number, self._next_swept = self._next_swept, (self._next_swept + 1) % self.num_shards
            names, holders = self._shards.get(number, _NO_SHARD)
            kept = [i for i, holder in enumerate(holders) if is_wanted(holder >> _TIER_BITS)]
            if len(kept) < len(names):
                self._num_entries -= len(names) - len(kept)
                self._shards[number] = (
                    array("Q", (names[i] for i in kept)),
                    array("I", (holders[i] for i in kept)),
                )

    def check_integrity(self) -> None:
        assert self._num_entries == sum(len(names) for names, _ in self._shards.values())
        assert self._num_entries <= self._max_entries
        for number, (names, holders) in self._shards.items():
            pairs = [(n, h >> _TIER_BITS) for n, h in zip(names, holders, strict=True)]
            assert pairs == sorted(set(pairs)), f"shard {number} is out of order"
            assert all(name >> self._shift == number for name in names), f"shard {number}"
            assert all(holder & _TIER_MASK for holder in holders), "an entry in no tier"

    def _shard(self, name: int) -> Shard:
        return self._shards.get(name >> self._shift, _NO_SHARD)


def _place(names: array[int], holders: array[int], name: int, holder: int) -> int:
    """Where this pair is, or would be."""
    first = bisect_left(names, name)
    if first == len(names) or names[first] != name:
        return first
    end = bisect_right(names, name, first)
    return bisect_left(holders, holder << _TIER_BITS, first, end)


def _is_at(names: array[int], holders: array[int], place: int, name: int, holder: int) -> bool:
    if place >= len(names) or names[place] != name:
        return False
    return holders[place] >> _TIER_BITS == holder
