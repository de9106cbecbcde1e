"""A lease's epoch: a number in memory that its reader can read, and that its owner changes before a
block of the lease is used again."""

from __future__ import annotations

import numpy as np

from pdray.core.handoff import LeaseEpoch

NUM_SLOTS = 4096
"""Leases that may be held at once and have an epoch; what is beyond relies on its time alone."""
EPOCH_BYTES = 8


class Epochs:
    """The epochs of one owner's leases. One thread takes and ends them; peers read the memory,
    whenever they like: a number is written as a whole."""

    def __init__(self, num_slots: int = NUM_SLOTS) -> None:
        self._values = np.zeros(num_slots, dtype=np.uint64)
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def address(self) -> int:
        return int(self._values.ctypes.data)

    @property
    def num_slots(self) -> int:
        return len(self._values)

    def take(self) -> LeaseEpoch | None:
        """For a new lease; ``end`` follows. None where all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        return LeaseEpoch(slot=slot, value=int(self._values[slot]))

    def end(self, epoch: LeaseEpoch) -> None:
        """From here on no reader believes what it has read under the lease."""
        assert self.is_current(epoch), f"epoch {epoch} has ended before"
        self._values[epoch.slot] += np.uint64(1)
        self._free.append(epoch.slot)

    def is_current(self, epoch: LeaseEpoch) -> bool:
        return int(self._values[epoch.slot]) == epoch.value
