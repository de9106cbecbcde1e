"""The process that has a remote transport: does what it is told, and polls meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from pdray.core.errors import TransferError
from pdray.transfer.base import TransferId, TransferState, Transport
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
)
from pdray.transfer.transfer_thread import POLL_INTERVAL_S

logger = logging.getLogger(__name__)

LENDING_S = 0.5
"""How long ``progress`` is called for after a ``Lend``."""


def serve_transport(connection: Connection, make_transport: Callable[[], Transport]) -> None:
    """Returns when the user closes the transport; raises EOFError where the user is gone."""
    try:
        transport = make_transport()
    except TransferError as error:
        connection.send(NotOpened(str(error)))
        return
    try:
        connection.send(Opened(transport.name, transport.block_bytes, transport.describe()))
        _Server(connection, transport).run()
    finally:
        transport.close()


class _Server:
    def __init__(self, connection: Connection, transport: Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._pulls: dict[TransferId, TransferId] = {}
        self._lends_until: float | None = None
        self._is_closed = False

    def run(self) -> None:
        while not self._is_closed:
            is_lending = self._lends_until is not None and time.monotonic() < self._lends_until
            is_busy = is_lending or bool(self._pulls)
            if self._connection.poll(POLL_INTERVAL_S if is_busy else None):
                self._obey(self._connection.recv())
                continue
            for transfer_id, own_id in list(self._pulls.items()):
                self._report(transfer_id, self._transport.poll(own_id))
            if is_lending:
                self._transport.progress()

    def _obey(self, message: ToServer) -> None:
        match message:
            case AddPeer():
                self._add_peer(message)
            case RemovePeer():
                self._transport.remove_peer(message.peer_id)
            case Pull():
                self._pull(message)
            case Lend():
                self._lends_until = time.monotonic() + LENDING_S
            case Close():
                self._is_closed = True

    def _add_peer(self, message: AddPeer) -> None:
        refusal: str | None = None
        try:
            self._transport.add_peer(message.peer_id, message.description)
        except TransferError as error:
            refusal = str(error)
        self._connection.send(PeerAdded(refusal))

    def _pull(self, message: Pull) -> None:
        try:
            own_id = self._transport.pull(message.peer_id, message.remote_ids, message.local_ids)
        except TransferError as error:
            logger.warning("a pull could not start: %s", error)
            self._report(message.transfer_id, TransferState.FAILED)
            return
        self._pulls[message.transfer_id] = own_id
        self._report(message.transfer_id, self._transport.poll(own_id))

    def _report(self, transfer_id: TransferId, state: TransferState) -> None:
        if state is not TransferState.PENDING:
            self._pulls.pop(transfer_id, None)
            self._connection.send(Ended(transfer_id, state))
