"""Every state that an owner, a reader and the messages between them can get into, one by one.

Messages may be doubled, lost, and delivered in any order, up to ``max_delay`` after they were sent;
the link may break; the reader may die; the owner's tick may come late.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pdray.transfer.lease import Lease, LeaseTable

LEASE_S = 2
QUARANTINE_S = 1
HORIZON = 6
MAX_PUBLISHED = 2
ID, READER = "lease", "reader"


class Kind(enum.StrEnum):
    OFFER = "offer"
    ACCEPT = "accept"
    REFUSE = "refuse"
    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    ACKNOWLEDGE = "acknowledge"


@dataclass(frozen=True, slots=True)
class World:
    """``until`` is the reader's own deadline: later it neither reads nor keeps what it read.
    ``is_done`` is a reader that reads no more: it has refused or acknowledged."""

    now: int = 0
    lease: Lease | None = None
    wire: frozenset[tuple[Kind, int]] = frozenset({(Kind.OFFER, 0)})
    num_published: int = 0
    is_link_up: bool = True
    is_alive: bool = True
    has_reserved: bool = False
    may_start: bool = False
    is_reading: bool = False
    is_withdrawn: bool = False
    is_done: bool = False
    until: int = 0

    @property
    def reader_uses_blocks(self) -> bool:
        """Reads now, or could begin to: what it got would count."""
        is_at_it = self.is_reading or (self.may_start and not self.is_withdrawn)
        return self.is_alive and not self.is_done and is_at_it and self.now < self.until

    def send(self, kind: Kind) -> World:
        return replace(self, wire=self.wire | {(kind, self.now)})

    def acknowledge(self) -> World:
        return replace(self, is_done=True).send(Kind.ACKNOWLEDGE)


def first_world() -> World:
    table = LeaseTable(lease_s=LEASE_S, quarantine_s=QUARANTINE_S)
    return World(lease=table.offer(ID, READER, 0))


def table_of(world: World) -> LeaseTable:
    table = LeaseTable(lease_s=LEASE_S, quarantine_s=QUARANTINE_S)
    if world.lease is not None:
        table._leases[ID] = world.lease
    return table


def successors(world: World, max_delay: int) -> Iterator[World]:
    if world.now < HORIZON:
        wire = frozenset(m for m in world.wire if m[1] + max_delay > world.now)
        yield replace(world, now=world.now + 1, wire=wire)
    for message in world.wire:
        for reached in deliver(world, message[0]):
            yield reached
            yield replace(reached, wire=reached.wire - {message})
    yield from owner_steps(world)
    yield from reader_steps(world)


def deliver(world: World, kind: Kind) -> Iterator[World]:
    table = table_of(world)
    match kind:
        case Kind.ACCEPT:
            table.accept(ID, world.now)
            yield replace(world, lease=table.get(ID))
        case Kind.REFUSE:
            table.refuse(ID)
            yield replace(world, lease=table.get(ID))
        case Kind.ACKNOWLEDGE:
            table.acknowledge(ID)
            yield replace(world, lease=table.get(ID))
        case _ if world.is_alive:
            yield from deliver_to_reader(world, kind)


def deliver_to_reader(world: World, kind: Kind) -> Iterator[World]:
    is_open = world.has_reserved and not world.is_done
    if kind is Kind.OFFER and not world.is_done:
        reserved = replace(world, has_reserved=True, until=world.now + LEASE_S)
        yield (world if world.has_reserved else reserved).send(Kind.ACCEPT)
        if not world.has_reserved:
            yield replace(world, is_done=True).send(Kind.REFUSE)
    elif kind is Kind.PUBLISH and is_open:
        yield replace(world, may_start=True, until=world.now + LEASE_S)
    elif kind is Kind.WITHDRAW:
        told = replace(world, is_withdrawn=True)
        yield told if told.is_reading else told.acknowledge()


def owner_steps(world: World) -> Iterator[World]:
    table = table_of(world)
    table.tick(world.now)
    yield replace(world, lease=table.get(ID))
    table = table_of(world)
    if world.num_published < MAX_PUBLISHED and table.renew(ID, world.now):
        published = replace(world, lease=table.get(ID), num_published=world.num_published + 1)
        yield published.send(Kind.PUBLISH)
    table = table_of(world)
    if table.withdraw(ID):
        yield replace(world, lease=table.get(ID)).send(Kind.WITHDRAW)
    table = table_of(world)
    if world.is_link_up:
        table.reader_lost(READER)
        yield replace(world, lease=table.get(ID), is_link_up=False)
    table = table_of(world)
    if not world.is_alive:
        table.reader_gone(READER)
        yield replace(world, lease=table.get(ID))


def reader_steps(world: World) -> Iterator[World]:
    if not world.is_alive:
        return
    yield replace(world, is_alive=False)
    if world.reader_uses_blocks:
        yield replace(world, is_reading=True)
    if world.is_reading:
        ended = replace(world, is_reading=False)
        yield ended.acknowledge() if ended.is_withdrawn else ended
    elif world.has_reserved and not world.is_done:
        yield world.acknowledge()


def search(max_delay: int) -> tuple[set[World], World | None]:
    """All worlds, or those up to the first in which blocks were released under a reader."""
    start = first_world()
    seen, todo = {start}, [start]
    while todo:
        world = todo.pop()
        if world.lease is None and world.reader_uses_blocks:
            return seen, world
        for reached in successors(world, max_delay):
            if reached not in seen:
                seen.add(reached)
                todo.append(reached)
    return seen, None


def test_blocks_are_never_released_under_a_reader_and_every_lease_ends() -> None:
    worlds, bad = search(max_delay=QUARANTINE_S)
    assert bad is None
    leases = {world.lease for world in worlds}
    assert {lease.state.value for lease in leases if lease is not None} == {
        "offered",
        "granted",
        "ending",
        "quarantined",
    }
    assert None in leases
    for world in worlds:
        table = table_of(world)
        while (tick_at := table.next_tick_at) is not None:
            assert table.tick(tick_at), "a tick when one was due changed nothing"
        assert len(table) == 0


def test_the_search_finds_what_too_short_a_quarantine_does() -> None:
    _, bad = search(max_delay=QUARANTINE_S + 1)
    assert bad is not None
    assert bad.reader_uses_blocks
