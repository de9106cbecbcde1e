"""What the two ends of a remote transport say: plain data, between processes of one worker."""

from __future__ import annotations

from dataclasses import dataclass

from pdray.transfer.base import TransferId, TransferState


@dataclass(frozen=True, slots=True)
class AddPeer:
    peer_id: str
    description: bytes


@dataclass(frozen=True, slots=True)
class PeerAdded:
    refusal: str | None


@dataclass(frozen=True, slots=True)
class RemovePeer:
    peer_id: str


@dataclass(frozen=True, slots=True)
class Pull:
    """``transfer_id`` is the user's own name for it."""

    transfer_id: TransferId
    peer_id: str
    remote_ids: tuple[int, ...]
    local_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The pull is DONE or FAILED."""

    transfer_id: TransferId
    state: TransferState


@dataclass(frozen=True, slots=True)
class Lend:
    """Peers read here: call ``progress`` for a while from now on."""


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing comes after it."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The transport is there; the first message of all."""

    name: str
    block_bytes: int
    description: bytes


@dataclass(frozen=True, slots=True)
class NotOpened:
    """Instead of Opened, and the last message."""

    reason: str


ToServer = AddPeer | RemovePeer | Pull | Lend | Close
ToUser = Opened | NotOpened | PeerAdded | Ended
