"""The transport of a whole worker: a block of it is a block on each of its ranks.

Each rank reads what it needs of the peer's ranks by itself. A read is done when it is done on every
rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.kvcache.convertible import convertible
from pdray.kvcache.layout import KVLayout
from pdray.transfer.base import EpochTransport, TransferId, TransferState, Transport
from pdray.transfer.description import check_ids
from pdray.transfer.reshard_plan import NOTHING, ReshardPlan, plan_for
from pdray.transfer.worker_description import WorkerDescription, read_worker_description


@dataclass(frozen=True, slots=True)
class _Peer:
    """``plan`` is None where its layout is ours. Ids are below the numbers."""

    plan: ReshardPlan | None
    num_remote_ids: int
    num_local_ids: int


class RankedTransport:
    """One transport for each rank, rank 0's first, behind the interface of one. ``layout`` is each
    rank's, and ``num_blocks`` counts all that its arena has."""

    def __init__(
        self,
        layout: KVLayout,
        num_blocks: int,
        first: EpochTransport,
        others: Sequence[Transport] = (),
    ) -> None:
        ranks = (first, *others)
        assert len(ranks) == layout.tensor_parallel, f"{len(ranks)} ranks of {layout.describe()}"
        self.name = first.name
        self.block_bytes = sum(rank.block_bytes for rank in ranks)
        self.epochs = first.epochs
        self._layout = layout
        self._num_blocks = num_blocks
        self._first = first
        self._ranks: tuple[Transport, ...] = ranks
        self._peers: dict[str, _Peer] = {}
        self._ids = itertools.count()
        self._pulls: dict[TransferId, dict[Transport, TransferId]] = {}
        self._failed: set[TransferId] = set()

    def describe(self) -> bytes:
        return WorkerDescription(
            layout=self._layout,
            num_blocks=self._num_blocks,
            ranks=tuple(rank.describe() for rank in self._ranks),
        ).encode()

    def add_peer(self, peer_id: str, description: bytes) -> None:
        worker = read_worker_description(description, peer_id=peer_id)
        if (reason := convertible(worker.layout, self._layout)) is not None:
            raise TransferError(f"peer {peer_id!r}: {reason}")
        try:
            for rank in self._ranks:
                rank.add_peer(peer_id, description)
        except TransferError:
            self.remove_peer(peer_id)  # not readable from some ranks and not from others
            raise
        self._peers[peer_id] = self._peer_of(worker)

    def _peer_of(self, worker: WorkerDescription) -> _Peer:
        plan = plan_for(worker.layout, self._layout)
        if plan is None:
            return _Peer(None, worker.num_blocks, self._num_blocks)
        return _Peer(
            plan,
            plan.num_units(worker.layout, worker.num_blocks),
            plan.num_units(self._layout, self._num_blocks),
        )

    def remove_peer(self, peer_id: str) -> None:
        self._peers.pop(peer_id, None)
        for rank in self._ranks:
            rank.remove_peer(peer_id)

    def num_bytes(self, peer_id: str, num_ids: int) -> int:
        peer = self._peers.get(peer_id)
        if peer is None or peer.plan is None:
            return num_ids * self.block_bytes
        return num_ids * peer.plan.unit_tokens * self.block_bytes // self._layout.block_size

    def pull(self, peer_id: str, remote_ids: Sequence[int], local_ids: Sequence[int]) -> TransferId:
        peer = self._peers.get(peer_id)
        if peer is None:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._peers)}")
        lowest = 0 if peer.plan is None else NOTHING
        check_ids(remote_ids, local_ids, peer.num_remote_ids, peer.num_local_ids, lowest=lowest)
        started: dict[Transport, TransferId] = {}
        transfer_id = TransferId(next(self._ids))
        # Rank 0's last: it may copy within the call, while the others are at theirs.
        for rank in reversed(self._ranks):
            try:
                started[rank] = rank.pull(peer_id, remote_ids, local_ids)
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
