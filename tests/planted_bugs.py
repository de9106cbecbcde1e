"""Mistakes that somebody could make in the lease protocol, for searches that should find them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pdray.transfer import lease, reading
from pdray.transfer.lease import LeaseEvent, LeaseState
from pdray.transfer.reading import ReadEvent, ReadState, ReadTable

Plant = Callable[[pytest.MonkeyPatch], None]


def change_lease(state: LeaseState, event: LeaseEvent, to: LeaseState | None) -> Plant:
    """None takes the transition out."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        if to is None:
            patch.delitem(lease.TRANSITIONS, (state, event))
        else:
            patch.setitem(lease.TRANSITIONS, (state, event), to)

    return plant


def change_read(state: ReadState, event: ReadEvent, to: ReadState | None) -> Plant:
    def plant(patch: pytest.MonkeyPatch) -> None:
        if to is None:
            patch.delitem(reading.TRANSITIONS, (state, event))
        else:
            patch.setitem(reading.TRANSITIONS, (state, event), to)

    return plant


def give_the_reader_more_time_than_the_owner(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reading, "READER_SHARE", 2.5)


def count_a_renewal_from_its_answer(patch: pytest.MonkeyPatch) -> None:
    renewed = ReadTable.renewed
    patch.setattr(ReadTable, "renewed", lambda self, id_, at: renewed(self, id_, at + 1.5))


def forget_that_a_lease_was_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReadTable, "knows", lambda self, lease_id: lease_id in self._reads)
