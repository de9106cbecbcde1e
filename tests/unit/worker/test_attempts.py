from __future__ import annotations

from pdray.core.clock import ManualClock
from pdray.worker.attempts import TOMBSTONE_S, AttemptTable


def test_an_attempt_is_taken_on_once() -> None:
    table = AttemptTable(ManualClock())
    assert table.begin("r", 1, "f")
    assert not table.begin("r", 1, "f")
    assert table.is_live("r", 1)
    assert table.frontend_of("r") == "f"


def test_a_later_attempt_replaces_an_earlier_one_and_never_the_other_way() -> None:
    table = AttemptTable(ManualClock())
    assert table.begin("r", 2, "f")
    assert not table.begin("r", 1, "f")
    assert table.begin("r", 3, "f")
    assert not table.is_live("r", 2)


def test_a_cancel_that_overtakes_its_submit_wins() -> None:
    table = AttemptTable(ManualClock())
    table.cancel("r", 1)
    assert not table.begin("r", 1, "f")
    assert table.begin("r", 2, "f")


def test_a_late_cancel_of_an_old_attempt_leaves_the_new_one_alone() -> None:
    table = AttemptTable(ManualClock())
    assert table.begin("r", 2, "f")
    assert table.cancel("r", 1) is None
    assert table.is_live("r", 2)


def test_a_cancel_ends_older_attempts_too_and_says_which() -> None:
    table = AttemptTable(ManualClock())
    assert table.begin("r", 1, "f")
    assert table.cancel("r", 3) == 1
    assert not table.begin("r", 2, "f")
    assert table.cancel("r", 3) is None


def test_ending_twice_does_no_harm() -> None:
    table = AttemptTable(ManualClock())
    assert table.begin("r", 1, "f")
    table.end("r", 1)
    table.end("r", 1)
    assert len(table) == 0


def test_tombstones_do_not_pile_up() -> None:
    clock = ManualClock()
    table = AttemptTable(clock)
    table.cancel("old", 1)
    clock.advance(TOMBSTONE_S)
    table.cancel("new", 1)
    assert table.begin("old", 1, "f")
    assert not table.begin("new", 1, "f")


def test_a_frontends_attempts_are_found_when_it_is_lost() -> None:
    table = AttemptTable(ManualClock())
    for request_id, frontend_id in [("a", "f"), ("b", "g"), ("c", "f")]:
        assert table.begin(request_id, 1, frontend_id)
    assert table.of_frontend("f") == [("a", 1), ("c", 1)]
