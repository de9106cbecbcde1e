"""What ``Transport.describe`` says of a worker's arena, and the checks that readers make."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import BlockPart, KVRegion
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


def read_description(data: bytes, *, peer_id: str, transport: str) -> ArenaDescription:
    """Decodes a peer's description. Raises TransferError where it is none, or is of another
    transport than ours."""
    try:
        peer = msgspec.msgpack.decode(data, type=ArenaDescription)
    except msgspec.DecodeError as error:
        raise TransferError(f"peer {peer_id!r} sent no arena description: {error}") from error
    if peer.transport != transport:
        raise TransferError(
            f"peer {peer_id!r} uses transport {peer.transport!r}, this worker {transport!r}; "
            "both must use the same"
        )
    if peer.num_blocks < 1 or peer.address < 0:
        raise TransferError(
            f"peer {peer_id!r} describes {peer.num_blocks} blocks at address {peer.address}; "
            "at least 1 block at a positive address is needed"
        )
    return peer


def whole_blocks(peer_id: str, peer: ArenaDescription, local: KVRegion) -> BlockPart:
    """Raises TransferError where the peer's are of another size."""
    if peer.block_bytes != local.block_bytes:
        raise TransferError(
            f"peer {peer_id!r} has blocks of {peer.block_bytes} bytes, this worker of "
            f"{local.block_bytes}: they cannot be copied whole"
        )
    return BlockPart(remote_offset=0, num_bytes=local.block_bytes, local=local, local_offset=0)


def check_pull(
    peer: ArenaDescription,
    part: BlockPart,
    remote_block_ids: Sequence[int],
    local_block_ids: Sequence[int],
) -> None:
    """Raises TransferError unless these say which part of which block goes where."""
    check_ids(remote_block_ids, local_block_ids, peer.num_blocks, part.local.num_blocks)
    _check_part("remote", part.remote_offset, part.num_bytes, peer.block_bytes)
    _check_part("local", part.local_offset, part.num_bytes, part.local.block_bytes)


def check_ids(
    remote_ids: Sequence[int],
    local_ids: Sequence[int],
    num_remote: int,
    num_local: int,
    *,
    lowest: int = 0,
) -> None:
    """Raises TransferError unless these lists name equally many; ``lowest`` is of remote ids."""
    if len(remote_ids) != len(local_ids):
        raise TransferError(
            f"a pull of {len(remote_ids)} remote blocks into {len(local_ids)} local "
            "ones; both lists must have the same length"
        )
    if not remote_ids:
        raise TransferError("a pull of no blocks; at least one is needed")
    _check_range("remote", remote_ids, lowest, num_remote)
    _check_range("local", local_ids, 0, num_local)


def check_epoch_slot(peer: ArenaDescription, epoch: LeaseEpoch) -> None:
    """Raises TransferError unless the peer has this one."""
    if not 0 <= epoch.slot < peer.num_epochs:
        raise TransferError(f"epoch slot {epoch.slot} is not in 0..{peer.num_epochs - 1}")


def _check_range(side: str, block_ids: Sequence[int], lowest: int, num_blocks: int) -> None:
    low, high = min(block_ids), max(block_ids)
    if low < lowest or high >= num_blocks:
        bad = low if low < lowest else high
        raise TransferError(f"{side} block id {bad} is not in 0..{num_blocks - 1}")


def _check_part(side: str, offset: int, num_bytes: int, block_bytes: int) -> None:
    if offset < 0 or num_bytes < 1 or offset + num_bytes > block_bytes:
        raise TransferError(
            f"{num_bytes} bytes at {offset} of {side} blocks, which have {block_bytes}"
        )
