"""The transport of a worker of several ranks: a block of the worker is a block on each of them.

Rank i reads from rank i of the peer, so both need equally many. A read is done when it is done
on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import EpochTransport, TransferId, TransferState, Transport


class RanksDescription(msgspec.Struct, frozen=True):
    """``describe`` of each rank's transport, in order."""

    ranks: tuple[bytes, ...]


class RankedTransport:
    """One transport for each rank, rank 0's first, behind the interface of one."""

    def __init__(self, first: EpochTransport, others: Sequence[Transport]) -> None:
        ranks = (first, *others)
        self.name = first.name
        self.block_bytes = sum(rank.block_bytes for rank in ranks)
        self.epochs = first.epochs
        self._first = first
        self._ranks: tuple[Transport, ...] = ranks
        self._ids = itertools.count()
        self._pulls: dict[TransferId, dict[Transport, TransferId]] = {}
        self._failed: set[TransferId] = set()

    def describe(self) -> bytes:
        ranks = tuple(rank.describe() for rank in self._ranks)
        return msgspec.msgpack.encode(RanksDescription(ranks))

    def add_peer(self, peer_id: str, description: bytes) -> None:
        descriptions = _read(description, peer_id, len(self._ranks))
        try:
            for rank, each in zip(self._ranks, descriptions, strict=True):
                rank.add_peer(peer_id, each)
        except TransferError:
            self.remove_peer(peer_id)  # not readable from some ranks and not from others
            raise

    def remove_peer(self, peer_id: str) -> None:
        for rank in self._ranks:
            rank.remove_peer(peer_id)

    def pull(
        self, peer_id: str, remote_block_ids: Sequence[int], local_block_ids: Sequence[int]
    ) -> TransferId:
        started: dict[Transport, TransferId] = {}
        transfer_id = TransferId(next(self._ids))
        # Rank 0's last: it may copy within the call, while the others are at theirs.
        for rank in reversed(self._ranks):
            try:
                started[rank] = rank.pull(peer_id, remote_block_ids, local_block_ids)
            except TransferError:
                if not started:
                    raise
                # Those that have begun touch memory until they end.
                self._failed.add(transfer_id)
                break
        self._pulls[transfer_id] = started
        return transfer_id

    def check_epoch(self, peer_id: str, epoch: LeaseEpoch) -> TransferId:
        """One for all ranks: it is looked at when they have all read."""
        transfer_id = TransferId(next(self._ids))
        self._pulls[transfer_id] = {self._first: self._first.check_epoch(peer_id, epoch)}
        return transfer_id

    def poll(self, transfer_id: TransferId) -> TransferState:
        pending = self._pulls[transfer_id]
        for rank, rank_id in list(pending.items()):
            state = rank.poll(rank_id)
            if state is not TransferState.PENDING:
                del pending[rank]
            if state is TransferState.FAILED:
                self._failed.add(transfer_id)
        if pending:
            return TransferState.PENDING
        del self._pulls[transfer_id]
        if transfer_id in self._failed:
            self._failed.discard(transfer_id)
            return TransferState.FAILED
        return TransferState.DONE

    def progress(self) -> None:
        for rank in self._ranks:
            rank.progress()

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()


def _read(description: bytes, peer_id: str, num_ranks: int) -> tuple[bytes, ...]:
    try:
        ranks = msgspec.msgpack.decode(description, type=RanksDescription).ranks
    except msgspec.DecodeError as error:
        raise TransferError(
            f"peer {peer_id!r} is no worker of ranks; this one has {num_ranks} ({error})"
        ) from error
    if len(ranks) != num_ranks:
        raise TransferError(
            f"peer {peer_id!r} has {len(ranks)} ranks, this worker {num_ranks}; both pools need "
            "the same tensor_parallel"
        )
    return ranks
