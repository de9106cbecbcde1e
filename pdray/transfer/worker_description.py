"""What a worker's ``describe`` says to peers: its layout, and how each rank's arena is read."""

from __future__ import annotations

import msgspec

from pdray.core.errors import TransferError
from pdray.kvcache.layout import KVLayout


class WorkerDescription(msgspec.Struct, frozen=True, kw_only=True):
    """``layout`` is each rank's, ``num_blocks`` too; ``ranks`` are their arenas' descriptions, in
    order."""

    layout: KVLayout
    num_blocks: int
    ranks: tuple[bytes, ...]

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def read_worker_description(data: bytes, *, peer_id: str) -> WorkerDescription:
    """Raises TransferError where it is none."""
    try:
        worker = msgspec.msgpack.decode(data, type=WorkerDescription)
    except msgspec.DecodeError as error:
        raise TransferError(f"peer {peer_id!r} sent no worker's description: {error}") from error
    layout = worker.layout
    if len(worker.ranks) != layout.tensor_parallel or not layout.groups or worker.num_blocks < 1:
        raise TransferError(
            f"peer {peer_id!r} describes {len(worker.ranks)} ranks of {worker.num_blocks} blocks "
            f"in {len(layout.groups)} KV groups; its layout is of {layout.tensor_parallel} ranks"
        )
    return worker
