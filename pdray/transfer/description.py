"""What ``Transport.describe`` says of a worker's arena, and the checks that readers make."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import KVRegion
from pdray.transfer.epochs import Epochs


class ArenaDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A peer's arena, and the epochs of its leases, in host memory. ``access`` is the transport's
    own: what opens the peer's memory."""

    transport: str
    address: int
    num_blocks: int
    block_bytes: int
    device_id: int | None
    epochs_address: int
    num_epochs: int
    access: bytes

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def describe_region(transport: str, region: KVRegion, epochs: Epochs, access: bytes) -> bytes:
    return ArenaDescription(
        transport=transport,
        address=region.address,
        num_blocks=region.num_blocks,
        block_bytes=region.block_bytes,
        device_id=region.device_id,
        epochs_address=epochs.address,
        num_epochs=epochs.num_slots,
        access=access,
    ).encode()


def read_description(
    data: bytes, *, peer_id: str, transport: str, local: KVRegion
) -> ArenaDescription:
    """Decodes a peer's description. Raises TransferError where it is none, or is of another
    transport or block size than ours."""
    try:
        peer = msgspec.msgpack.decode(data, type=ArenaDescription)
    except msgspec.DecodeError as error:
        raise TransferError(f"peer {peer_id!r} sent no arena description: {error}") from error
    if peer.transport != transport:
        raise TransferError(
            f"peer {peer_id!r} uses transport {peer.transport!r}, this worker {transport!r}; "
            "both must use the same"
        )
    if peer.block_bytes != local.block_bytes:
        raise TransferError(
            f"peer {peer_id!r} has blocks of {peer.block_bytes} bytes, this worker of "
            f"{local.block_bytes}; both pools need the same KV layout"
        )
    if peer.num_blocks < 1 or peer.address < 0:
        raise TransferError(
            f"peer {peer_id!r} describes {peer.num_blocks} blocks at address {peer.address}; "
            "at least 1 block at a positive address is needed"
        )
    return peer


def check_block_ids(
    peer: ArenaDescription,
    local: KVRegion,
    remote_block_ids: Sequence[int],
    local_block_ids: Sequence[int],
) -> None:
    """Raises TransferError unless these lists say which block goes where."""
    if len(remote_block_ids) != len(local_block_ids):
        raise TransferError(
            f"a pull of {len(remote_block_ids)} remote blocks into {len(local_block_ids)} local "
            "ones; both lists must have the same length"
        )
    if not remote_block_ids:
        raise TransferError("a pull of no blocks; at least one is needed")
    _check_range("remote", remote_block_ids, peer.num_blocks)
    _check_range("local", local_block_ids, local.num_blocks)


def check_epoch_slot(peer: ArenaDescription, epoch: LeaseEpoch) -> None:
    """Raises TransferError unless the peer has this one."""
    if not 0 <= epoch.slot < peer.num_epochs:
        raise TransferError(f"epoch slot {epoch.slot} is not in 0..{peer.num_epochs - 1}")


def _check_range(side: str, block_ids: Sequence[int], num_blocks: int) -> None:
    low, high = min(block_ids), max(block_ids)
    if low < 0 or high >= num_blocks:
        bad = low if low < 0 else high
        raise TransferError(f"{side} block id {bad} is not in 0..{num_blocks - 1}")
