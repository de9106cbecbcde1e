"""A transport in another process of the same worker, as the one that uses it sees it."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from pdray.core.errors import TransferError
from pdray.transfer.base import TransferId, TransferState
from pdray.transfer.remote_messages import (
    AddPeer,
    Close,
    Ended,
    Lend,
    NotOpened,
    Opened,
    PeerAdded,
    Pull,
    RemovePeer,
    ToServer,
    ToUser,
)
from pdray.transfer.remote_server import LENDING_S

logger = logging.getLogger(__name__)


class RemoteTransport:
    """``add_peer`` waits for its answer, and so does making one; all else is said and not waited
    for. Once the other process has died every read has FAILED, and nothing can be started."""

    def __init__(self, connection: Connection) -> None:
        """``serve_transport`` is at the connection's other end, or will be. Raises
        TransferError."""
        self._connection = connection
        self._is_lost = False
        self._peers: set[str] = set()
        self._ids = itertools.count()
        self._states: dict[TransferId, TransferState] = {}
        self._lent_at: float | None = None
        opened = self._receive()
        if not isinstance(opened, Opened):
            reason = opened.reason if isinstance(opened, NotOpened) else "its process has died"
            raise TransferError(f"a rank's transport could not be made: {reason}")
        self.name = opened.name
        self.block_bytes = opened.block_bytes
        self._description = opened.description

    def describe(self) -> bytes:
        return self._description

    def add_peer(self, peer_id: str, description: bytes) -> None:
        self._send(AddPeer(peer_id, description))
        while not isinstance(answer := self._receive(), PeerAdded):
            if answer is None:
                raise TransferError(f"peer {peer_id!r} cannot be added: a rank has died")
            self._take(answer)
        if answer.refusal is not None:
            raise TransferError(answer.refusal)
        self._peers.add(peer_id)

    def remove_peer(self, peer_id: str) -> None:
        if peer_id in self._peers:
            self._peers.remove(peer_id)
            self._send(RemovePeer(peer_id))

    def pull(self, peer_id: str, remote_ids: Sequence[int], local_ids: Sequence[int]) -> TransferId:
        """What is wrong with the ids is said by ``poll``, as FAILED."""
        if peer_id not in self._peers:
            raise TransferError(f"unknown peer {peer_id!r}; known: {sorted(self._peers)}")
        if self._is_lost:
            raise TransferError("a rank has died")
        transfer_id = TransferId(next(self._ids))
        self._states[transfer_id] = TransferState.PENDING
        self._send(Pull(transfer_id, peer_id, tuple(remote_ids), tuple(local_ids)))
        return transfer_id

    def poll(self, transfer_id: TransferId) -> TransferState:
        while not self._is_lost and self._connection.poll():
            self._take(self._receive())
        state = self._states[transfer_id]
        if state is TransferState.PENDING and self._is_lost:
            state = TransferState.FAILED  # by a process that is no more
        if state is not TransferState.PENDING:
            del self._states[transfer_id]
        return state

    def progress(self) -> None:
        now = time.monotonic()
        if self._lent_at is None or now - self._lent_at > LENDING_S / 2:
            self._lent_at = now
            self._send(Lend())

    def close(self) -> None:
        self._send(Close())
        self._states.clear()
        self._peers.clear()

    def _take(self, message: ToUser | None) -> None:
        if message is not None:
            assert isinstance(message, Ended), message
            self._states[message.transfer_id] = message.state

    def _send(self, message: ToServer) -> None:
        if self._is_lost:
            return
        try:
            self._connection.send(message)
        except ConnectionError:
            self._lose()

    def _receive(self) -> ToUser | None:
        """Waits for it; None where the other process has died."""
        if self._is_lost:
            return None
        try:
            message: ToUser = self._connection.recv()
        except (EOFError, ConnectionError):
            self._lose()
            return None
        return message

    def _lose(self) -> None:
        self._is_lost = True
        logger.warning("a rank's transport has gone with its process")
