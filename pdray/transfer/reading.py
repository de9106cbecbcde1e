"""When a reader may use what it reads, and when its blocks are its own again: its side of the lease
protocol, without clock or I/O. The owner's is lease.py."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace


class ReadState(enum.StrEnum):
    """How far the reading of a lease is. In WAITING no read is in flight, and more is to come.

    ::

           +------------ idle -----------+
           v                             |
        WAITING --------begin-------> READING ---last--> FINISHING
           |  |                        | ^ | begin        | ^ | begin
           |  +--last--+               | +-+              | +-+
           |           |               |                  |
           | give up   v    give up    |   give up        |
           |        ARRIVED <----------|------------------+
           v                           v         idle     |
        GIVEN_UP <-----idle------- DRAINING <-------------+

    A read cannot be taken back: in DRAINING nobody may have the blocks that it may still fill.
    Events with no arrow change nothing.
    """

    WAITING = "waiting"
    READING = "reading"
    FINISHING = "finishing"
    DRAINING = "draining"
    ARRIVED = "arrived"
    GIVEN_UP = "given up"


class ReadEvent(enum.StrEnum):
    """BEGIN is that of a read, IDLE the end of the last one in flight, LAST the news that all is
    published and asked for."""

    BEGIN = "begin"
    IDLE = "idle"
    LAST = "last"
    GIVE_UP = "give up"


_S, _E = ReadState, ReadEvent
TRANSITIONS: dict[tuple[ReadState, ReadEvent], ReadState] = {
    (_S.WAITING, _E.BEGIN): _S.READING,
    (_S.WAITING, _E.LAST): _S.ARRIVED,
    (_S.WAITING, _E.GIVE_UP): _S.GIVEN_UP,
    (_S.READING, _E.BEGIN): _S.READING,
    (_S.READING, _E.IDLE): _S.WAITING,
    (_S.READING, _E.LAST): _S.FINISHING,
    (_S.READING, _E.GIVE_UP): _S.DRAINING,
    (_S.FINISHING, _E.BEGIN): _S.FINISHING,
    (_S.FINISHING, _E.IDLE): _S.ARRIVED,
    (_S.FINISHING, _E.GIVE_UP): _S.DRAINING,
    (_S.DRAINING, _E.IDLE): _S.GIVEN_UP,
}
OPEN = frozenset({_S.WAITING, _S.READING, _S.FINISHING})
"""What is read still counts."""
ENDED = frozenset({_S.ARRIVED, _S.GIVEN_UP})

READER_SHARE = 5 / 6
"""Of a lease's time: what clocks of unlike speed may differ by is the owner's."""
RENEWALS = 6
"""In the time of one lease: so many lost ones in a row cost it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedRead:
    """The reading of one lease. ``deadline`` and ``renew_at`` are times of the reader's clock.
    With reads in flight the last began or ended at ``moved_at``; ``failure`` says why it was given
    up."""

    lease_id: str
    owner_id: str
    lease_s: float
    state: ReadState
    deadline: float
    renew_at: float
    num_in_flight: int = 0
    moved_at: float = 0.0
    failure: str | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN


class ReadTable:
    """All leases that a worker reads under.

    Every event returns the reading where it changed its state, as it is now, else None. The caller
    quarantines its own blocks for DRAINING ones. Those ARRIVED and GIVEN_UP the table has
    forgotten: their blocks may be used, and the owner hears of it. It still knows their ids for
    ``remembered_s``: an offer that comes twice is not taken twice.
    """

    def __init__(self, *, remembered_s: float) -> None:
        self._remembered_s = remembered_s
        self._reads: dict[str, LeasedRead] = {}
        self._ended: dict[str, float] = {}

    def __iter__(self) -> Iterator[LeasedRead]:
        return iter(self._reads.values())

    def __len__(self) -> int:
        return len(self._reads)

    def get(self, lease_id: str) -> LeasedRead | None:
        """None where it was never reserved for, or has ended."""
        return self._reads.get(lease_id)

    def knows(self, lease_id: str) -> bool:
        """Whether it was reserved for, over or not."""
        return lease_id in self._reads or lease_id in self._ended

    def reserve(self, lease_id: str, owner_id: str, lease_s: float, now: float) -> LeasedRead:
        """Blocks are reserved, and the owner is told so after this."""
        assert not self.knows(lease_id), f"lease {lease_id} is taken twice"
        read = LeasedRead(
            lease_id=lease_id,
            owner_id=owner_id,
            lease_s=lease_s,
            state=ReadState.WAITING,
            deadline=now + lease_s * READER_SHARE,
            renew_at=now + lease_s / RENEWALS,
        )
        self._reads[lease_id] = read
        return read

    def refuse(self, lease_id: str, now: float) -> None:
        """Nothing will be reserved for it: it is over, or its end has overtaken its offer."""
        assert lease_id not in self._reads, f"lease {lease_id} is refused while it is read"
        self._ended[lease_id] = now + self._remembered_s

    def begin(self, lease_id: str, now: float) -> bool:
        """Whether a read may begin; ``end`` follows then."""
        read = self._reads.get(lease_id)
        if read is None or not read.is_open or now >= read.deadline:
            return False
        num_in_flight = read.num_in_flight + 1
        self._reads[lease_id] = replace(read, num_in_flight=num_in_flight, moved_at=now)
        self._apply(lease_id, ReadEvent.BEGIN, now)
        return True

    def end(self, lease_id: str, failure: str | None, now: float) -> LeasedRead | None:
        """A read can touch memory no more. What it has read counts only where it did not fail, it
        came in time, and the lease's epoch was still the same after it."""
        read = self._reads[lease_id]
        assert read.num_in_flight > 0, f"a read of lease {lease_id} ends that was not begun"
        if failure is None and now >= read.deadline:
            failure = "its blocks came too late"
        changed = None if failure is None else self.give_up(lease_id, failure, now)
        read = self._reads[lease_id]
        num_in_flight = read.num_in_flight - 1
        self._reads[lease_id] = replace(read, num_in_flight=num_in_flight, moved_at=now)
        if read.num_in_flight > 1:
            return changed
        return self._apply(lease_id, ReadEvent.IDLE, now)

    def last(self, lease_id: str, now: float) -> LeasedRead | None:
        """All blocks are published, and a read of each was begun."""
        return self._apply(lease_id, ReadEvent.LAST, now)

    def give_up(self, lease_id: str, failure: str, now: float) -> LeasedRead | None:
        """For whatever reason: what is still read is thrown away."""
        read = self._reads.get(lease_id)
        if read is None or not read.is_open:
            return None
        self._reads[lease_id] = replace(read, failure=failure)
        return self._apply(lease_id, ReadEvent.GIVE_UP, now)

    def renewed(self, lease_id: str, asked_at: float) -> None:
        """The owner has given more time, counted from when it was asked for it."""
        read = self._reads.get(lease_id)
        if read is not None:
            deadline = max(read.deadline, asked_at + read.lease_s * READER_SHARE)
            self._reads[lease_id] = replace(read, deadline=deadline)

    def take_renewals(self, now: float) -> list[LeasedRead]:
        """Those for which it is time to ask for more; they are asked for now."""
        due = [read for read in self if read.is_open and now >= read.renew_at]
        for read in due:
            self._reads[read.lease_id] = replace(read, renew_at=now + read.lease_s / RENEWALS)
        return due

    def tick(self, now: float) -> tuple[LeasedRead, ...]:
        """Gives up what has no time left, and what has had reads in flight for the time of a lease
        with none of them ending, whatever the owner says."""
        while self._ended and next(iter(self._ended.values())) <= now:
            del self._ended[next(iter(self._ended))]
        changed: list[LeasedRead | None] = []
        for read in list(self):
            if now >= read.deadline:
                reason = "its owner did not renew the lease in time"
                changed.append(self.give_up(read.lease_id, reason, now))
            elif read.num_in_flight and now >= read.moved_at + read.lease_s:
                reason = f"a read has hung for {read.lease_s} s"
                changed.append(self.give_up(read.lease_id, reason, now))
        return tuple(read for read in changed if read is not None)

    def _apply(self, lease_id: str, event: ReadEvent, now: float) -> LeasedRead | None:
        read = self._reads.get(lease_id)
        if read is None or (read.state, event) not in TRANSITIONS:
            return None
        changed = replace(read, state=TRANSITIONS[read.state, event])
        if changed.state in ENDED:
            del self._reads[lease_id]
            self.refuse(lease_id, now)
        else:
            self._reads[lease_id] = changed
        return None if changed.state is read.state else changed
