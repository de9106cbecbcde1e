"""Whose blocks are read next: bounded for each peer, fair between requests.

Pure: it counts blocks, and the transfer thread reads those that it names. Without a bound, a peer's
whole backlog would be posted at once, and a short request's few blocks would arrive after all of a
long one's; without slices, a single large read would do the same.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False, kw_only=True)
class Read:
    """Remote block i goes into local block i. ``flow`` names the request that waits for it."""

    peer_id: str
    flow: str
    remote_block_ids: tuple[int, ...]
    local_block_ids: tuple[int, ...]
    num_taken: int = 0
    num_in_flight: int = 0

    @property
    def is_over(self) -> bool:
        """Nothing is left to take, and nothing is in flight."""
        return self.num_taken >= len(self.local_block_ids) and not self.num_in_flight


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A part of a read that is started as one."""

    read: Read
    start: int
    end: int

    @property
    def num_blocks(self) -> int:
        return self.end - self.start

    @property
    def remote_block_ids(self) -> tuple[int, ...]:
        return self.read.remote_block_ids[self.start : self.end]

    @property
    def local_block_ids(self) -> tuple[int, ...]:
        return self.read.local_block_ids[self.start : self.end]


@dataclass(slots=True, eq=False)
class _Backlog:
    """One peer's flows, whose turn it is first."""

    flows: OrderedDict[str, deque[Read]] = field(default_factory=OrderedDict)
    num_in_flight: int = 0


class ReadQueue:
    """Flows of a peer take turns of a slice each; of one flow, reads go in the order they came.

    At most ``max_blocks_in_flight`` of a peer's blocks are in flight at once.
    """

    def __init__(self, *, max_blocks_in_flight: int, slice_blocks: int) -> None:
        assert 0 < slice_blocks <= max_blocks_in_flight, (slice_blocks, max_blocks_in_flight)
        self._max_blocks_in_flight = max_blocks_in_flight
        self._slice_blocks = slice_blocks
        self._backlogs: dict[str, _Backlog] = {}

    @property
    def has_waiting(self) -> bool:
        """Whether there are blocks that nobody has taken yet."""
        return any(backlog.flows for backlog in self._backlogs.values())

    def add(self, read: Read) -> None:
        backlog = self._backlogs.setdefault(read.peer_id, _Backlog())
        backlog.flows.setdefault(read.flow, deque()).append(read)

    def take(self) -> Slice | None:
        """What to start now; None where nothing waits, or all that waits must go on waiting."""
        for backlog in self._backlogs.values():
            room = self._max_blocks_in_flight - backlog.num_in_flight
            if backlog.flows and room >= min(self._slice_blocks, _next_size(backlog)):
                return self._take_of(backlog)
        return None

    def _take_of(self, backlog: _Backlog) -> Slice:
        flow, reads = next(iter(backlog.flows.items()))
        read = reads[0]
        start = read.num_taken
        read.num_taken = min(start + self._slice_blocks, len(read.local_block_ids))
        read.num_in_flight += 1
        if read.num_taken == len(read.local_block_ids):
            reads.popleft()
        if reads:
            backlog.flows.move_to_end(flow)
        else:
            del backlog.flows[flow]
        taken = Slice(read, start, read.num_taken)
        backlog.num_in_flight += taken.num_blocks
        return taken

    def ended(self, taken: Slice) -> None:
        """The slice touches memory no more."""
        taken.read.num_in_flight -= 1
        backlog = self._backlogs[taken.read.peer_id]
        backlog.num_in_flight -= taken.num_blocks
        self._forget_if_idle(taken.read.peer_id)

    def drop(self, read: Read) -> None:
        """What has not been taken of the read never will be."""
        if read.num_taken >= len(read.local_block_ids):
            return
        read.num_taken = len(read.local_block_ids)
        flows = self._backlogs[read.peer_id].flows
        flows[read.flow].remove(read)
        if not flows[read.flow]:
            del flows[read.flow]
        self._forget_if_idle(read.peer_id)

    def _forget_if_idle(self, peer_id: str) -> None:
        backlog = self._backlogs[peer_id]
        if not backlog.flows and not backlog.num_in_flight:
            del self._backlogs[peer_id]


def _next_size(backlog: _Backlog) -> int:
    """Blocks that are left of the read whose turn it is."""
    read = next(iter(backlog.flows.values()))[0]
    return len(read.local_block_ids) - read.num_taken
