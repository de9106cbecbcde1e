from __future__ import annotations

import pytest

from pdray.transfer.epochs import Epochs


def test_a_slot_that_is_taken_again_has_another_epoch() -> None:
    epochs = Epochs(num_slots=1)
    first = epochs.take()
    assert first is not None
    assert epochs.is_current(first)
    epochs.end(first)
    second = epochs.take()
    assert second is not None
    assert (second.slot, epochs.is_current(first), epochs.is_current(second)) == (0, False, True)


def test_more_leases_than_slots_go_without() -> None:
    epochs = Epochs(num_slots=2)
    taken = [epochs.take() for _ in range(3)]
    assert taken[2] is None
    assert taken[0] is not None
    epochs.end(taken[0])
    assert epochs.take() is not None


def test_an_epoch_ends_once() -> None:
    epochs = Epochs(num_slots=1)
    epoch = epochs.take()
    assert epoch is not None
    epochs.end(epoch)
    with pytest.raises(AssertionError, match="has ended before"):
        epochs.end(epoch)
