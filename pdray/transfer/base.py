"""What moves KV blocks between workers: the reader pulls, nobody writes into a peer."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from pdray.core.handoff import LeaseEpoch
from pdray.transfer.epochs import Epochs

TransferId = NewType("TransferId", int)


class TransferState(enum.StrEnum):
    """PENDING until the read can touch memory no more; then DONE or FAILED, for good."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVRegion:
    """A worker's KV arena as a transport sees it: ``num_blocks`` equal blocks, back to back.

    ``address`` is in bytes; ``device_id`` is None for host memory, else the CUDA device.
    """

    address: int
    num_blocks: int
    block_bytes: int
    device_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPart:
    """The same ``num_bytes`` of every block: from ``remote_offset`` on in the peer's, to
    ``local_offset`` in those of ``local``, which is the arena or was registered."""

    remote_offset: int
    num_bytes: int
    local: KVRegion
    local_offset: int


class Transport(Protocol):
    """Reads blocks from peers' arenas into one's own.

    One thread owns a transport and makes every call; no call blocks for the length of a read.
    A read cannot be taken back: its destination blocks must stay untouched until ``poll`` says
    DONE or FAILED, whoever has lost interest in it (DESIGN.md section 5).

    What its ids count are blocks; where it knows of layouts and the peer's is another, they count
    units of blocks (reshard_plan.py).
    """

    name: str
    block_bytes: int

    def describe(self) -> bytes:
        """What a peer needs for its ``add_peer``: opaque, and small enough for one message."""

    def add_peer(self, peer_id: str, description: bytes) -> None:
        """Makes ``peer_id`` readable; a known peer is replaced. Raises TransferError where the
        description is no good."""

    def remove_peer(self, peer_id: str) -> None:
        """Forgets a peer; unknown ones are ignored. Its pending reads end as FAILED or DONE."""

    def pull(
        self, peer_id: str, remote_ids: Sequence[int], local_ids: Sequence[int], /
    ) -> TransferId:
        """Starts to copy remote block i into local block i, whole blocks, same length lists.
        Raises TransferError for an unknown peer, unlike or empty lists, an id out of range,
        blocks of unlike sizes, or a peer that has gone."""

    def poll(self, transfer_id: TransferId) -> TransferState:
        """Moves this and all other reads on. The id is forgotten once DONE or FAILED was
        returned."""

    def progress(self) -> None:
        """Moves peers' reads of *our* blocks on: an owner calls it while it is being read."""

    def close(self) -> None:
        """Releases registrations and connections. Nothing may be called after it."""


class EpochTransport(Transport, Protocol):
    """That of a worker, of whose ranks the first has the epochs of all leases."""

    epochs: Epochs

    def check_epoch(self, peer_id: str, epoch: LeaseEpoch) -> TransferId:
        """Starts to read a lease's epoch out of the peer's memory. ``poll`` says DONE where it
        still is this one, FAILED where it is not, or cannot be read. Raises TransferError for an
        unknown peer, a slot that it has not, or a peer that has gone."""


class WorkerTransport(EpochTransport, Protocol):
    """One that a worker's transfer thread owns: it can say how much it moves."""

    def num_bytes(self, peer_id: str, num_ids: int) -> int:
        """Of our blocks, that a pull of so many ids from a known peer fills."""


class ArenaTransport(WorkerTransport, Protocol):
    """One that knows memory and no layouts: peers' blocks may be of other sizes than its own."""

    def register(self, region: KVRegion) -> None:
        """Makes memory that is not the arena's a place to read into; it must outlive this."""

    def pull_part(
        self,
        peer_id: str,
        part: BlockPart,
        remote_block_ids: Sequence[int],
        local_block_ids: Sequence[int],
    ) -> TransferId:
        """As ``pull``, of a part of each block. Raises TransferError where the peer's blocks, or
        the local ones, have no such part."""
