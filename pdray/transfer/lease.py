"""When an owner may use its blocks again: its side of the lease protocol, without clock or I/O.

Why a lease that nobody acknowledges ends safely: a reader counts its time from when it *sent* the
message (that it accepts, or wants more time) which the owner counts from having *received*. So
the reader's is over first, however long messages take, and what arrives at the reader later is
thrown away. ``quarantine_s``, and a bit that the reader takes off its time (reading.py), are for
clocks of unlike speed. Against a reader whose clock stood still, as with a suspended machine, there
is the lease's epoch (epochs.py).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace


class LeaseState(enum.StrEnum):
    """Where a lease is. Only GRANTED ones may be published.

    ::

                               +-+ renew
                               | v
        OFFERED --accept--> GRANTED --withdraw, give up--> ENDING
           |                   |                             |
           |                   +--- deadline, reader lost ---+---> QUARANTINED
           |                   |                             |          |
           | refuse, withdraw, | acknowledge,                | same     | quarantine over,
           | give up, deadline,| reader gone                 |          | acknowledge,
           | reader lost/gone  v                             v          v reader gone
           +----------------> ENDED <------------------------+----------+

    An offer that was not accepted can end at once, as nothing of it was ever published. One that
    is ENDING waits for the acknowledgement that no read is in flight any more.
    Events with no arrow are doubled or late messages, and change nothing.
    """

    OFFERED = "offered"
    GRANTED = "granted"
    ENDING = "ending"
    QUARANTINED = "quarantined"
    ENDED = "ended"


class LeaseEvent(enum.StrEnum):
    """What can happen to a lease. LOST is the link to the reader, GONE is its process."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    WITHDRAW = "withdraw"
    RENEW = "renew"
    GIVE_UP = "give up"
    ACKNOWLEDGE = "acknowledge"
    READER_LOST = "reader lost"
    READER_GONE = "reader gone"
    DEADLINE = "deadline"
    QUARANTINE_OVER = "quarantine over"


_S, _E = LeaseState, LeaseEvent
TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (_S.OFFERED, _E.ACCEPT): _S.GRANTED,
    (_S.OFFERED, _E.REFUSE): _S.ENDED,
    (_S.OFFERED, _E.WITHDRAW): _S.ENDED,
    (_S.OFFERED, _E.GIVE_UP): _S.ENDED,
    (_S.OFFERED, _E.ACKNOWLEDGE): _S.ENDED,
    (_S.OFFERED, _E.READER_LOST): _S.ENDED,
    (_S.OFFERED, _E.READER_GONE): _S.ENDED,
    (_S.OFFERED, _E.DEADLINE): _S.ENDED,
    (_S.GRANTED, _E.RENEW): _S.GRANTED,
    (_S.GRANTED, _E.WITHDRAW): _S.ENDING,
    (_S.GRANTED, _E.GIVE_UP): _S.ENDING,
    (_S.GRANTED, _E.ACKNOWLEDGE): _S.ENDED,
    (_S.GRANTED, _E.READER_LOST): _S.QUARANTINED,
    (_S.GRANTED, _E.READER_GONE): _S.ENDED,
    (_S.GRANTED, _E.DEADLINE): _S.QUARANTINED,
    (_S.ENDING, _E.ACKNOWLEDGE): _S.ENDED,
    (_S.ENDING, _E.READER_LOST): _S.QUARANTINED,
    (_S.ENDING, _E.READER_GONE): _S.ENDED,
    (_S.ENDING, _E.DEADLINE): _S.QUARANTINED,
    (_S.QUARANTINED, _E.ACKNOWLEDGE): _S.ENDED,
    (_S.QUARANTINED, _E.READER_GONE): _S.ENDED,
    (_S.QUARANTINED, _E.QUARANTINE_OVER): _S.ENDED,
}
EXTENDING = frozenset({_E.ACCEPT, _E.RENEW})
"""The deadline is counted anew from these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A reader's hold on blocks of ours. ``deadline`` is a time of the owner's clock; the
    quarantine, if it comes to one, is counted from it."""

    lease_id: str
    reader_id: str
    state: LeaseState
    deadline: float

    @property
    def may_release_blocks(self) -> bool:
        return self.state is LeaseState.ENDED


class LeaseTable:
    """All leases that this worker has given and that have not ended.

    Every event returns the leases that it changed, as they are now. The caller quarantines the
    blocks of QUARANTINED ones and releases those of ENDED ones, which the table has then forgotten.
    """

    def __init__(self, *, lease_s: float, quarantine_s: float) -> None:
        assert min(lease_s, quarantine_s) > 0, (lease_s, quarantine_s)
        self._lease_s = lease_s
        self._quarantine_s = quarantine_s
        self._leases: dict[str, Lease] = {}

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._leases

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, lease_id: str) -> Lease | None:
        """None where the lease was never offered, or has ended."""
        return self._leases.get(lease_id)

    @property
    def next_tick_at(self) -> float | None:
        """When ``tick`` has something to do next; None while there is no lease."""
        return min((self._runs_out_at(lease) for lease in self), default=None)

    def offer(self, lease_id: str, reader_id: str, now: float) -> Lease:
        """A new lease, about to be offered to ``reader_id``."""
        assert lease_id not in self._leases, f"lease {lease_id} is offered twice"
        lease = Lease(
            lease_id=lease_id,
            reader_id=reader_id,
            state=LeaseState.OFFERED,
            deadline=now + self._lease_s,
        )
        self._leases[lease_id] = lease
        return lease

    def may_publish(self, lease_id: str) -> bool:
        lease = self._leases.get(lease_id)
        return lease is not None and lease.state is LeaseState.GRANTED

    def accept(self, lease_id: str, now: float) -> tuple[Lease, ...]:
        """The reader has reserved its blocks. Where the lease is not ``in`` the table any more,
        the caller tells the reader so with a withdrawal."""
        return self._apply(lease_id, LeaseEvent.ACCEPT, now)

    def renew(self, lease_id: str, now: float) -> bool:
        """The reader wants more time. False where the lease is not GRANTED: it must not be told
        that it has any."""
        return bool(self._apply(lease_id, LeaseEvent.RENEW, now))

    def refuse(self, lease_id: str) -> tuple[Lease, ...]:
        """The reader reserved nothing."""
        return self._apply(lease_id, LeaseEvent.REFUSE)

    def withdraw(self, lease_id: str) -> tuple[Lease, ...]:
        """The request is over; the caller tells the reader, who may still be reading."""
        return self._apply(lease_id, LeaseEvent.WITHDRAW)

    def give_up(self, lease_id: str) -> tuple[Lease, ...]:
        """The reader has no use for the blocks any more, and may still be reading."""
        return self._apply(lease_id, LeaseEvent.GIVE_UP)

    def acknowledge(self, lease_id: str) -> tuple[Lease, ...]:
        """The reader reads no more, and will not."""
        return self._apply(lease_id, LeaseEvent.ACKNOWLEDGE)

    def reader_lost(self, reader_id: str) -> tuple[Lease, ...]:
        """The link to the reader broke: its process may live and read on."""
        return self._apply_to_reader(reader_id, LeaseEvent.READER_LOST)

    def reader_gone(self, reader_id: str) -> tuple[Lease, ...]:
        """The reader's process is known to have ended: nothing is read any more."""
        return self._apply_to_reader(reader_id, LeaseEvent.READER_GONE)

    def tick(self, now: float) -> tuple[Lease, ...]:
        """Applies all deadlines up to ``now``; a lease far past both is reported once, ENDED."""
        changed: dict[str, Lease] = {}
        for lease in list(self):
            quarantine_end = lease.deadline + self._quarantine_s
            for event, due_at in (
                (LeaseEvent.DEADLINE, lease.deadline),
                (LeaseEvent.QUARANTINE_OVER, quarantine_end),
            ):
                if now >= due_at:
                    changed.update((c.lease_id, c) for c in self._apply(lease.lease_id, event))
        return tuple(changed.values())

    def _runs_out_at(self, lease: Lease) -> float:
        if lease.state is LeaseState.QUARANTINED:
            return lease.deadline + self._quarantine_s
        return lease.deadline

    def _apply_to_reader(self, reader_id: str, event: LeaseEvent) -> tuple[Lease, ...]:
        lease_ids = [lease.lease_id for lease in self if lease.reader_id == reader_id]
        return tuple(c for lease_id in lease_ids for c in self._apply(lease_id, event))

    def _apply(
        self, lease_id: str, event: LeaseEvent, now: float | None = None
    ) -> tuple[Lease, ...]:
        lease = self._leases.get(lease_id)
        if lease is None or (lease.state, event) not in TRANSITIONS:
            return ()
        deadline = lease.deadline
        if event in EXTENDING:
            assert now is not None, f"{event} without a time"
            deadline = now + self._lease_s
        changed = replace(lease, state=TRANSITIONS[lease.state, event], deadline=deadline)
        if changed.state is LeaseState.ENDED:
            del self._leases[lease_id]
        else:
            self._leases[lease_id] = changed
        return (changed,)
