from __future__ import annotations

import pytest

from pdray.transfer.lease import LeaseState, LeaseTable


def make_table() -> LeaseTable:
    return LeaseTable(lease_s=30, quarantine_s=20)


def states(table: LeaseTable) -> list[LeaseState]:
    return [lease.state for lease in table]


def test_the_good_way_releases_blocks_at_the_acknowledgement() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    assert states(table) == [LeaseState.OFFERED]
    assert not table.may_publish("l"), "nothing may be published before the reader reserved"
    (granted,) = table.accept("l", now=10)
    assert (granted.state, granted.deadline) == (LeaseState.GRANTED, 40)
    assert table.renew("l", now=25)
    assert table.next_tick_at == 55
    (ended,) = table.acknowledge("l")
    assert ended.may_release_blocks
    assert "l" not in table
    assert table.next_tick_at is None


def test_a_withdrawn_lease_waits_for_the_reader() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    table.accept("l", now=0)
    (ending,) = table.withdraw("l")
    assert ending.state is LeaseState.ENDING
    assert not ending.may_release_blocks
    assert not table.may_publish("l"), "a withdrawn lease is published no more"
    assert not table.renew("l", now=1), "and its reader gets no more time"
    (ended,) = table.acknowledge("l")
    assert ended.may_release_blocks


def test_a_silent_reader_costs_the_lease_and_the_quarantine() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    table.accept("l", now=5)
    assert table.tick(34.9) == ()
    (quarantined,) = table.tick(35)
    assert quarantined.state is LeaseState.QUARANTINED
    assert table.next_tick_at == 55
    assert table.tick(54.9) == ()
    (ended,) = table.tick(55)
    assert ended.may_release_blocks


def test_a_late_tick_reports_the_end_once() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    table.accept("l", now=0)
    (ended,) = table.tick(1000)
    assert ended.may_release_blocks


def test_a_lost_link_quarantines_and_a_dead_process_releases() -> None:
    table = make_table()
    for lease_id, reader_id in (("a", "decode-1"), ("b", "decode-1"), ("c", "decode-2")):
        table.offer(lease_id, reader_id, now=0)
    table.accept("a", now=0)
    changed = {lease.lease_id: lease.state for lease in table.reader_lost("decode-1")}
    assert changed == {"a": LeaseState.QUARANTINED, "b": LeaseState.ENDED}
    (gone,) = table.reader_gone("decode-1")
    assert (gone.lease_id, gone.may_release_blocks) == ("a", True)
    assert states(table) == [LeaseState.OFFERED]


def test_one_that_its_reader_has_given_up_waits_for_its_last_read() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    table.accept("l", now=0)
    (ending,) = table.give_up("l")
    assert ending.state is LeaseState.ENDING
    assert table.give_up("l") == ()
    (ended,) = table.acknowledge("l")
    assert ended.may_release_blocks


def test_an_answer_to_a_lease_that_is_over_changes_nothing() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    (ended,) = table.withdraw("l")
    assert ended.may_release_blocks, "an offer without an answer was never published"
    assert table.accept("l", now=1) == ()
    assert table.acknowledge("l") == ()
    assert "l" not in table


def test_an_offer_with_a_known_id_is_a_bug() -> None:
    table = make_table()
    table.offer("l", "decode", now=0)
    with pytest.raises(AssertionError, match="lease l is offered twice"):
        table.offer("l", "decode", now=1)
