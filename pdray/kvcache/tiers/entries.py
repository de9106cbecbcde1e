"""What one tier holds: names in slots, the order of use, pins, and how long sessions keep theirs.

Pure: counts slots, knows no memory and no clock. Not thread-safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pdray.kvcache.prefix_index import BlockName


@dataclass(slots=True, eq=False)
class TierEntry:
    """A block in a slot. ``keep_until`` is the end of the last session that wants it kept, None
    for one that was only evicted. Pinned ones are being read or written: their slot stays theirs,
    even of one that ``is_removed``."""

    name: BlockName
    slot: int
    keep_until: float | None = None
    num_pins: int = 0
    is_removed: bool = False


class TierEntries:
    """Each name once, each slot for one entry at most.

    What is given up for a newcomer: the least recently used of those that no session keeps, then
    of the kept ones that which would end first; never a pinned one.
    """

    def __init__(self, num_slots: int) -> None:
        assert num_slots > 0, "a tier without room"
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        # Dicts, as their keys keep the order in which they came: of use, and of ends, which is
        # the order of keeping as long as all sessions keep for the same time.
        self._plain: dict[BlockName, TierEntry] = {}
        self._kept: dict[BlockName, TierEntry] = {}
        self._removed: set[TierEntry] = set()

    def __len__(self) -> int:
        return len(self._plain) + len(self._kept)

    def __contains__(self, name: BlockName) -> bool:
        return name in self._plain or name in self._kept

    def __iter__(self) -> Iterator[TierEntry]:
        """In the order in which they would be given up."""
        return itertools.chain(self._plain.values(), self._kept.values())

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    def find(self, name: BlockName) -> TierEntry | None:
        return self._plain.get(name) or self._kept.get(name)

    def add(self, name: BlockName, slot: int | None = None) -> TierEntry | None:
        """A new entry, pinned once: its bytes are yet to come. In ``slot``, which is free, or in
        any; None where all slots are taken by pinned ones."""
        assert name not in self, f"{name} is here already"
        if slot is not None:
            self._free.remove(slot)
        elif (slot := self._take_slot()) is None:
            return None
        entry = self._plain[name] = TierEntry(name, slot, num_pins=1)
        return entry

    def _take_slot(self) -> int | None:
        if not self._free:
            victim = next((entry for entry in self if not entry.num_pins), None)
            if victim is None:
                return None
            self.remove(victim)
        return self._free.pop()

    def use(self, entry: TierEntry) -> None:
        """It is the most recently used now."""
        if self._plain.pop(entry.name, None) is not None:
            self._plain[entry.name] = entry

    def keep(self, entry: TierEntry, until: float) -> None:
        """A session wants it kept; it ends when the last such session does."""
        assert not entry.is_removed, f"{entry.name} is kept, and has been removed"
        if entry.keep_until is not None and entry.keep_until >= until:
            return
        self._plain.pop(entry.name, None)
        self._kept.pop(entry.name, None)
        entry.keep_until = until
        self._kept[entry.name] = entry

    def expire(self, now: float) -> list[TierEntry]:
        """Removes those whose sessions have ended."""
        over = list(
            itertools.takewhile(lambda entry: not _outlives(entry, now), self._kept.values())
        )
        for entry in over:
            self.remove(entry)
        return over

    def pin(self, entry: TierEntry) -> None:
        assert not entry.is_removed, f"{entry.name} is pinned, and has been removed"
        entry.num_pins += 1

    def unpin(self, entry: TierEntry) -> None:
        assert entry.num_pins > 0, f"{entry.name} has no pin"
        entry.num_pins -= 1
        if entry.is_removed and not entry.num_pins:
            self._removed.remove(entry)
            self._free.append(entry.slot)

    def remove(self, entry: TierEntry) -> None:
        """Nobody finds it any more; its slot is free when the last pin is gone."""
        if entry.is_removed:
            return
        entry.is_removed = True
        self._plain.pop(entry.name, None)
        self._kept.pop(entry.name, None)
        if entry.num_pins:
            self._removed.add(entry)
        else:
            self._free.append(entry.slot)

    def check_integrity(self) -> None:
        """Raises AssertionError where slots, names and states do not fit together."""
        slots = [*self._free, *(entry.slot for entry in [*self, *self._removed])]
        assert sorted(slots) == list(range(self.num_slots)), "a slot is lost, or taken twice"
        for name, entry in [*self._plain.items(), *self._kept.items()]:
            assert entry.name == name, f"{entry.name} is where {name} should be"
            assert not entry.is_removed, f"{name} has been removed and is found"
        assert all(entry.keep_until is None for entry in self._plain.values())
        assert all(entry.keep_until is not None for entry in self._kept.values())
        assert all(entry.num_pins and entry.is_removed for entry in self._removed)


def _outlives(entry: TierEntry, now: float) -> bool:
    return entry.keep_until is not None and entry.keep_until > now
