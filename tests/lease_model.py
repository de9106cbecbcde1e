"""One owner with two blocks of a prompt, two readers, and a network that does to messages whatever
a network can: the lease protocol's own tables, and around them the least that makes a world.

A message that was sent once may be delivered at any time from then on, any number of times, or
never. So a message is nothing but the state of who has sent it: whoever could have, has. Time
passes in ticks of one lease; deadlines are kept as what is left of them, so that there are finitely
many worlds. Reading a block is two steps, its data and then its lease's epoch; a block is written
by others as soon as nobody holds it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from pdray.transfer.lease import Lease, LeaseState, LeaseTable
from pdray.transfer.reading import LeasedRead, ReadState, ReadTable

LEASE_S = 1.0
ID, READER, OWNER = "lease", "reader", "owner"
NUM_BLOCKS = 2


class Block(enum.IntEnum):
    """Of the reader's: not asked for; being read; with data that was the owner's, or others', and
    the epoch not looked at yet; read and believed; read and thrown away."""

    NONE = 0
    FLYING = 1
    FRESH = 2
    STALE = 3
    GOOD = 4
    REFUSED = 5


IN_FLIGHT = frozenset({Block.FLYING, Block.FRESH, Block.STALE})


class Side(NamedTuple):
    """One lease: the owner's view, and the reader's. ``is_renewed``: the owner has answered to a
    renewal that was asked for less than a tick ago; older answers give no time."""

    is_offered: bool = False
    lease: Lease | None = None
    num_published: int = 0
    is_renewed: bool = False
    is_alive: bool = True
    is_known: bool = False
    read: LeasedRead | None = None
    has_joined: bool = False
    num_wanted: int = 0
    blocks: tuple[Block, ...] = (Block.NONE,) * NUM_BLOCKS
    fault: str | None = None

    @property
    def is_lent(self) -> bool:
        return self.lease is not None

    def holds(self, block: int) -> bool:
        return self.is_lent and self.num_published > block

    def may_count(self, block: int) -> bool:
        """A read of the block is in flight, and what it gets would be used."""
        read = self.read
        is_open = self.is_alive and read is not None and read.is_open and read.deadline > 0
        return is_open and self.blocks[block] in IN_FLIGHT


class Shared(NamedTuple):
    """What both leases see of the owner: its sequence's hold, and which blocks are others' now."""

    is_alive: bool = True
    has_sequence: bool = True
    is_reused: tuple[bool, ...] = (False,) * NUM_BLOCKS


class World(NamedTuple):
    sides: tuple[Side, Side]
    shared: Shared


@dataclass(frozen=True, slots=True)
class Rules:
    """What a world may do. ``clocks_stop``: a reader's machine may be suspended, so that its time
    does not pass. ``has_epochs``: reads are followed by one of the epoch."""

    clocks_stop: bool = False
    has_epochs: bool = True


def owner_table(side: Side) -> LeaseTable:
    table = LeaseTable(lease_s=LEASE_S, quarantine_s=LEASE_S)
    if side.lease is not None:
        table._leases[ID] = side.lease
    return table


def reader_table(side: Side) -> ReadTable:
    table = ReadTable(remembered_s=LEASE_S)
    if side.read is not None:
        table._reads[ID] = side.read
    elif side.is_known:
        table._ended[ID] = LEASE_S
    return table


def with_read(side: Side, table: ReadTable, changed: LeasedRead | None = None) -> Side:
    read, fault = table.get(ID), side.fault
    has_arrived = changed is not None and changed.state is ReadState.ARRIVED
    if read is not None:
        read = replace(read, renew_at=0.0, moved_at=0.0, failure=None)
    elif any(block in IN_FLIGHT for block in side.blocks):
        fault = "a reader's block was given away while a read could fill it"
    if has_arrived and side.has_joined:
        fault = "a request was started twice"
    has_joined = side.has_joined or has_arrived
    return side._replace(read=read, is_known=table.knows(ID), has_joined=has_joined, fault=fault)


CLOCKS = ((False, False), (True, False), (False, True))
"""Which of the two readers' have stopped."""


class Step(NamedTuple):
    """``drops_sequence`` where the owner's prompt is over with it."""

    side: Side
    drops_sequence: bool = False


@cache
def steps(side: Side, shared: Shared, rules: Rules) -> tuple[Step, ...]:
    """All that can happen to one lease."""
    found = set(reader_steps(side, shared, rules)) if side.is_alive else set()
    if shared.is_alive:
        found |= set(owner_steps(side, shared))
    found = {step._replace(side=essence(step.side)) for step in found}
    return tuple(found - {Step(side)})


def essence(side: Side) -> Side:
    """Without what can make no difference any more, so that there are fewer worlds."""
    reader_is_over = not side.is_alive or (side.is_known and side.read is None)
    if reader_is_over:
        nothing = (Block.NONE,) * NUM_BLOCKS
        side = side._replace(num_wanted=0, blocks=nothing, is_known=True, is_renewed=False)
        if side.is_offered and side.lease is None:
            side = side._replace(num_published=0, is_alive=False)
    return side


def owner_steps(side: Side, shared: Shared) -> Iterator[Step]:
    if not side.is_offered:
        return
    if (
        shared.has_sequence
        and side.num_published < NUM_BLOCKS
        and owner_table(side).may_publish(ID)
    ):
        yield Step(side._replace(num_published=side.num_published + 1))
    for event in owner_events(side):
        table = owner_table(side)
        event(table)
        # A prompt whose reader has it all is over.
        is_handed_off = event is acknowledge and side.has_joined
        yield Step(side._replace(lease=table.get(ID)), is_handed_off)
    table = owner_table(side)
    if side.is_known and table.renew(ID, 0.0):
        is_asked_for_now = side.read is not None and side.read.is_open
        renewed = side._replace(lease=table.get(ID))
        yield Step(renewed._replace(is_renewed=True) if is_asked_for_now else renewed)


def acknowledge(table: LeaseTable) -> None:
    table.acknowledge(ID)


def owner_events(side: Side) -> Iterator[Callable[[LeaseTable], object]]:
    """Its own, and the messages that its reader has sent."""
    yield lambda table: table.tick(0.0)
    yield lambda table: table.withdraw(ID)
    yield lambda table: table.reader_lost(READER)
    if not side.is_alive:
        yield lambda table: table.reader_gone(READER)
    if side.is_known:
        yield lambda table: table.accept(ID, 0.0)
    if side.is_known and (side.read is None or not side.read.is_open):
        yield lambda table: table.give_up(ID)
    if side.is_known and side.read is None:
        yield acknowledge


def reader_steps(side: Side, shared: Shared, rules: Rules) -> Iterator[Step]:
    nothing = (Block.NONE,) * NUM_BLOCKS
    yield Step(side._replace(is_alive=False, read=None, blocks=nothing))
    if not side.is_offered:
        return
    table = reader_table(side)
    if not table.knows(ID):
        table.reserve(ID, OWNER, LEASE_S, 0.0)
        yield Step(with_read(side, table))
        table = reader_table(side)
        table.refuse(ID, 0.0)  # it has no room, or a withdrawal has overtaken the offer
        yield Step(with_read(side, table))
    if side.read is None:
        return
    table = reader_table(side)
    changed = table.give_up(ID, "cancelled, withdrawn, or its owner is lost", 0.0)
    yield Step(with_read(side, table, changed))
    table = reader_table(side)
    for late in table.tick(0.0):
        yield Step(with_read(side, table, late))
    if side.is_renewed:
        table = reader_table(side)
        table.renewed(ID, 0.0)
        yield Step(with_read(side, table))
    for num_published in range(side.num_wanted + 1, side.num_published + 1):
        yield Step(take_watermark(side, num_published))
    for block in range(NUM_BLOCKS):
        yield from read_steps(side, shared, rules, block)


def take_watermark(side: Side, num_published: int) -> Side:
    table = reader_table(side)
    blocks = list(side.blocks)
    if side.read is None or not side.read.is_open:
        return side
    for block in range(side.num_wanted, num_published):
        if not table.begin(ID, 0.0):
            return side
        blocks[block] = Block.FLYING
    changed = table.last(ID, 0.0) if num_published == NUM_BLOCKS else None
    side = side._replace(num_wanted=num_published, blocks=tuple(blocks))
    return with_read(side, table, changed)


def read_steps(side: Side, shared: Shared, rules: Rules, block: int) -> Iterator[Step]:
    state = side.blocks[block]
    if state is Block.FLYING and shared.is_alive:
        is_reused = shared.is_reused[block]
        yield Step(with_block(side, block, Block.STALE if is_reused else Block.FRESH))
    if state in (Block.FRESH, Block.STALE):
        # The owner has bumped the epoch when it ended the lease, before it let go of a block.
        is_good = shared.is_alive and (side.is_lent or not rules.has_epochs)
        yield Step(end_read(side, block, None if is_good else "its epoch is over"))
    if state in IN_FLIGHT:
        yield Step(end_read(side, block, "the owner has died, or the network failed"))


def end_read(side: Side, block: int, failure: str | None) -> Side:
    table = reader_table(side)
    assert side.read is not None
    is_believed = failure is None and side.read.is_open and side.read.deadline > 0
    if is_believed and side.blocks[block] is Block.STALE:
        side = side._replace(fault="a block was used that was others' when it was read")
    if failure is not None:
        side = with_read(side, table, table.give_up(ID, failure, 0.0))
    if side.fault is not None:
        return side
    changed = table.end(ID, failure, 0.0)
    side = with_block(side, block, Block.GOOD if is_believed else Block.REFUSED)
    return with_read(side, table, changed)


def with_block(side: Side, block: int, state: Block) -> Side:
    blocks = list(side.blocks)
    blocks[block] = state
    return side._replace(blocks=tuple(blocks))


@cache
def later(side: Side, has_stopped: bool) -> Side:
    """A tick passes; for the reader not where its clock ``has_stopped``."""
    lease, read, is_renewed = side.lease, side.read, side.is_renewed
    if lease is not None:
        lease = replace(lease, deadline=max(-LEASE_S, lease.deadline - LEASE_S))
    if not has_stopped:
        is_renewed = False
        if read is not None:
            read = replace(read, deadline=max(0.0, read.deadline - LEASE_S))
    return side._replace(lease=lease, read=read, is_renewed=is_renewed)


def first_world() -> World:
    return World((offered(Side()), Side()), Shared())


def offered(side: Side) -> Side:
    table = owner_table(side)
    table.offer(ID, READER, 0.0)
    return side._replace(is_offered=True, lease=table.get(ID))


def successors(world: World, rules: Rules) -> Iterator[World]:
    sides, shared = world
    for number, side in enumerate(sides):
        for step in steps(side, shared, rules):
            yield with_side(world, number, step)
    first, second = sides
    if shared.is_alive and shared.has_sequence and not second.is_offered and may_offer_again(first):
        yield World((first, offered(second)), shared)
    for has_stopped in CLOCKS if rules.clocks_stop else CLOCKS[:1]:
        passed = (later(first, has_stopped[0]), later(second, has_stopped[1]))
        yield World(passed, shared)
    if shared.is_alive:
        yield settle(world, shared._replace(has_sequence=False))
        dead = (essence(first._replace(lease=None)), essence(second._replace(lease=None)))
        yield World(dead, shared._replace(is_alive=False))


def may_offer_again(first: Side) -> bool:
    return first.lease is None or first.lease.state in (LeaseState.ENDING, LeaseState.QUARANTINED)


def with_side(world: World, number: int, step: Step) -> World:
    first, second = world.sides
    sides = (step.side, second) if number == 0 else (first, step.side)
    shared = world.shared
    if step.drops_sequence:
        shared = shared._replace(has_sequence=False)
    return settle(World(sides, shared), shared)


def settle(world: World, shared: Shared) -> World:
    """What nobody holds is others' at once."""
    if shared.is_alive and not shared.has_sequence:
        is_reused = tuple(
            was or not any(side.holds(block) for side in world.sides)
            for block, was in enumerate(shared.is_reused)
        )
        shared = shared._replace(is_reused=is_reused)
    return World(world.sides, shared)


def fault_of(world: World, rules: Rules) -> str | None:
    """What must never be."""
    for side in world.sides:
        if side.fault is not None:
            return side.fault
        for block, is_reused in enumerate(world.shared.is_reused):
            if is_reused and side.may_count(block) and not rules.clocks_stop:
                return "an owner's block was given away while a read of it could count"
    return None


@cache
def ends(side: Side) -> bool:
    """With no message coming through any more, time alone ends all waiting on both sides, and so
    gives all blocks back, where every read ends some day."""
    for _ in range(4):
        if side.fault is not None:
            return True  # what is wrong with it is another thing
        side = later(side, False)
        table = owner_table(side)
        table.tick(0.0)
        side = side._replace(lease=table.get(ID))
        for block, state in enumerate(side.blocks):
            if state in IN_FLIGHT and side.fault is None:
                side = end_read(side, block, "failed")
        reads = reader_table(side)
        for late in reads.tick(0.0):
            side = with_read(side, reads, late)
    return side.lease is None and side.read is None
