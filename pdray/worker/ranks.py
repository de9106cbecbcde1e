"""What a tensor-parallel worker's ranks do besides the forward pass: each moves its own KV."""

from __future__ import annotations

from functools import partial
from multiprocessing.connection import Connection

from pdray.engine.engine import Engine
from pdray.kvcache.storage import KVStorage
from pdray.transfer import create_transport
from pdray.transfer.base import EpochTransport, KVRegion
from pdray.transfer.ranked import RankedTransport
from pdray.transfer.remote import RemoteTransport
from pdray.transfer.remote_server import serve_transport


def make_transport(name: str, worker_id: str, engine: Engine) -> EpochTransport:
    """Over the engine's blocks on all of its ranks. Raises TransferError."""
    sides = [] if engine.ranks is None else engine.ranks.side_connections
    for rank, side in enumerate(sides, start=1):
        side.send(partial(serve_rank, name, f"{worker_id}.{rank}"))
    own = create_transport(name, worker_id, region_of(engine.storage))
    return RankedTransport(own, list(map(RemoteTransport, sides))) if sides else own


def serve_rank(name: str, agent_id: str, side: Connection, storage: KVStorage) -> None:
    """Runs in a rank's own process: see the companion in engine/tensor_parallel/follower.py."""
    serve_transport(side, region_of(storage), partial(create_transport, name, agent_id))


def region_of(storage: KVStorage) -> KVRegion:
    """The block for what is never read among them: a first read goes there."""
    return KVRegion(
        address=storage.address,
        num_blocks=storage.num_blocks + 1,
        block_bytes=storage.block_bytes,
        device_id=storage.device_id,
    )
