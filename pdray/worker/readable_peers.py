"""Whose memory the transport can read: that of peers whose blocks were asked for, while a link to
them is up."""

from __future__ import annotations

import logging

from pdray.core.errors import TransferError
from pdray.kvcache.convertible import convertible
from pdray.kvcache.layout import KVLayout
from pdray.link.connection import Connection
from pdray.transfer.reshard_plan import ReshardPlan, plan_for
from pdray.transfer.transfer_thread import TransferThread
from pdray.transfer.worker_description import read_worker_description

logger = logging.getLogger(__name__)


class ReadablePeers:
    """Tells the transport of each peer once in the life of its links, which are one each way at
    most."""

    def __init__(self, transfer: TransferThread, layout: KVLayout) -> None:
        self._transfer = transfer
        self._layout = layout
        self._links: dict[str, set[Connection]] = {}

    def add(self, link: Connection) -> None:
        description = link.peer_hello.transfer_description
        if description is None:
            return
        links = self._links.setdefault(link.peer_id, set())
        if not links:
            added = self._transfer.add_peer(link.peer_id, description)
            added.add_done_callback(lambda done: log_failure(link.peer_id, done.exception()))
        links.add(link)

    def add_again(self, link: Connection) -> None:
        """A read has failed: some transports need to be told anew then."""
        description = link.peer_hello.transfer_description
        if link in self._links.get(link.peer_id, ()) and description is not None:
            added = self._transfer.add_peer(link.peer_id, description)
            added.add_done_callback(lambda done: log_failure(link.peer_id, done.exception()))

    def plan_of(self, link: Connection) -> ReshardPlan | None:
        """How ids of the peer's blocks are to be named: None where its layout is ours, and where
        it has sent none that can be read, as its pulls fail then."""
        description = link.peer_hello.transfer_description
        if description is None:
            return None
        try:
            peer = read_worker_description(description, peer_id=link.peer_id)
        except TransferError:
            return None  # said by ``add``, with the same words
        if convertible(peer.layout, self._layout) is not None:
            return None
        return plan_for(peer.layout, self._layout)

    def on_lost(self, link: Connection) -> None:
        links = self._links.get(link.peer_id, set())
        if link in links:
            links.remove(link)
            if not links:
                del self._links[link.peer_id]
                self._transfer.remove_peer(link.peer_id)


def log_failure(peer_id: str, error: BaseException | None) -> None:
    """Its pulls will fail with the same words; this says it once, where it began."""
    if error is not None:
        logger.error("the KV memory of %s cannot be read: %s", peer_id, error)
