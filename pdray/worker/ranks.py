"""What a tensor-parallel worker's ranks do besides the forward pass: each moves its own KV."""

from __future__ import annotations

from functools import partial
from multiprocessing.connection import Connection

from pdray.engine.engine import Engine
from pdray.kvcache.storage import KVStorage
from pdray.transfer import create_transport
from pdray.transfer.ranked import RankedTransport
from pdray.transfer.remote import RemoteTransport
from pdray.transfer.remote_server import serve_transport
from pdray.transfer.resharding import ReshardingTransport, region_of


def make_transport(name: str, worker_id: str, engine: Engine) -> RankedTransport:
    """Over the engine's blocks on all of its ranks. Raises TransferError."""
    sides = [] if engine.ranks is None else engine.ranks.side_connections
    for rank, side in enumerate(sides, start=1):
        side.send(partial(serve_rank, name, worker_id, rank))
    own = rank_transport(name, worker_id, engine.storage, 0)
    num_blocks = region_of(engine.storage).num_blocks
    return RankedTransport(engine.layout, num_blocks, own, list(map(RemoteTransport, sides)))


def serve_rank(name: str, worker_id: str, rank: int, side: Connection, storage: KVStorage) -> None:
    """Runs in a rank's own process: see the companion in engine/tensor_parallel/follower.py."""
    serve_transport(side, partial(rank_transport, name, f"{worker_id}.{rank}", storage, rank))


def rank_transport(name: str, agent_id: str, storage: KVStorage, rank: int) -> ReshardingTransport:
    transport = create_transport(name, agent_id, region_of(storage))
    return ReshardingTransport(transport, storage, rank=rank)
