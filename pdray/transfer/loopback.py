"""Copies between arenas of one process: the reference that other transports are tested against."""

from __future__ import annotations

import ctypes
import itertools
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import BlockPart, KVRegion, TransferId, TransferState
from pdray.transfer.description import (
    ArenaDescription,
    check_epoch_slot,
    check_pull,
    describe_region,
    read_description,
    whole_blocks,
)
from pdray.transfer.epochs import Epochs


class _Arenas:
    """The arenas of this process that may be read, by the secret in their description.

    Owners and readers live in threads of their own: copies and closings exclude each other, so
    that no copy reads an arena that its owner has given back.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[KVRegion, Epochs]] = {}
        self._lock = threading.Lock()

    def open(self, region: KVRegion, epochs: Epochs) -> bytes:
        with self._lock:
            key = secrets.token_bytes(16)
            self._open[key] = (region, epochs)
            return key

    def close(self, key: bytes) -> None:
        with self._lock:
            del self._open[key]

    def is_open(self, key: bytes) -> bool:
        with self._lock:
            return key in self._open

    def copy(self, key: bytes, part: BlockPart, pairs: Sequence[tuple[int, int]]) -> bool:
        """False, with nothing copied, where the arena is closed."""
        with self._lock:
            if key not in self._open:
                return False
            remote, _ = self._open[key]
            source = remote.address + part.remote_offset
            target = part.local.address + part.local_offset
            for remote_id, local_id in pairs:
                ctypes.memmove(
                    target + local_id * part.local.block_bytes,
                    source + remote_id * remote.block_bytes,
                    part.num_bytes,
                )
            return True

    def has_epoch(self, key: bytes, epoch: LeaseEpoch) -> bool:
        with self._lock:
            return key in self._open and self._open[key][1].is_current(epoch)


_ARENAS = _Arenas()


@dataclass(frozen=True, slots=True)
class _Pull:
    """Of blocks, or of an epoch."""

    key: bytes
    part: BlockPart | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    epoch: LeaseEpoch | None = None


class LoopbackTransport:
    """Peers are other transports of this process. A read happens at the next ``poll`` of any."""

    name = "loopback"

    def __init__(self, worker_id: str, region: KVRegion) -> None:
        if region.device_id is not None:
            raise TransferError(
                f"worker {worker_id!r}: loopback copies host memory only, not device "
                f"{region.device_id}"
            )
        self.block_bytes = region.block_bytes
        self._region = region
        self.epochs = Epochs()
        self._key = _ARENAS.open(region, self.epochs)
        self._peers: dict[str, ArenaDescription] = {}
        self._ids = itertools.count()
        self._pending: dict[TransferId, _Pull] = {}
        self._ended: dict[TransferId, TransferState] = {}

    def describe(self) -> bytes:
        return describe_region(self.name, self._region, self.epochs, self._key)

    def add_peer(self, peer_id: str, description: bytes) -> None:
        peer = read_description(description, peer_id=peer_id, transport=self.name)
        if not _ARENAS.is_open(peer.access):
            raise TransferError(f"peer {peer_id!r} is not in this process, or has closed")
        self._peers[peer_id] = peer

    def remove_peer(self, peer_id: str) -> None:
        self._peers.pop(peer_id, None)

    def pull(
        self, peer_id: str, remote_block_ids: Sequence[int], local_block_ids: Sequence[int]
    ) -> TransferId:
        part = whole_blocks(peer_id, self._known(peer_id), self._region)
        return self.pull_part(peer_id, part, remote_block_ids, local_block_ids)

    def num_bytes(self, peer_id: str, num_ids: int) -> int:
        return num_ids * self.block_bytes

    def register(self, region: KVRegion) -> None:
        """Nothing to do: this process may write anywhere in its memory."""

    def pull_part(
        self,
        peer_id: str,
        part: BlockPart,
        remote_block_ids: Sequence[int],
        local_block_ids: Sequence[int],
    ) -> TransferId:
        check_pull(self._known(peer_id), part, remote_block_ids, local_block_ids)
        pairs = tuple(zip(remote_block_ids, local_block_ids, strict=True))
        return self._begin(_Pull(self._find(peer_id).access, part, pairs))

    def check_epoch(self, peer_id: str, epoch: LeaseEpoch) -> TransferId:
        peer = self._find(peer_id)
        check_epoch_slot(peer, epoch)
        return self._begin(_Pull(peer.access, epoch=epoch))

    def _find(self, peer_id: str) -> ArenaDescription:
        peer = self._known(peer_id)
        if not _ARENAS.is_open(peer.access):
            raise TransferError(f"peer {peer_id!r} has gone")
        return peer

    def _begin(self, pull: _Pull) -> TransferId:
        transfer_id = TransferId(next(self._ids))
        self._pending[transfer_id] = pull
        return transfer_id

    def poll(self, transfer_id: TransferId) -> TransferState:
        for pending_id, pull in list(self._pending.items()):
            if pull.epoch is not None:
                is_good = _ARENAS.has_epoch(pull.key, pull.epoch)
            else:
                assert pull.part is not None
                is_good = _ARENAS.copy(pull.key, pull.part, pull.pairs)
            del self._pending[pending_id]
            self._ended[pending_id] = TransferState.DONE if is_good else TransferState.FAILED
        return self._ended.pop(transfer_id)

    def _known(self, peer_id: str) -> ArenaDescription:
        peer = self._peers.get(peer_id)
        if peer is None:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._peers)}")
        return peer

    def progress(self) -> None:
        """Nothing to do: readers copy by themselves."""

    def close(self) -> None:
        _ARENAS.close(self._key)
        self._pending.clear()
        self._ended.clear()
        self._peers.clear()
