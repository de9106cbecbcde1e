"""A worker of two ranks, the second of which is played by hand: in step, late, failing, dead."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from pdray.core.errors import TransferError
from pdray.kvcache.layout import KVGroup, KVLayout
from pdray.kvcache.storage import KVStorage
from pdray.transfer.base import TransferId, TransferState
from pdray.transfer.loopback import LoopbackTransport
from pdray.transfer.ranked import RankedTransport
from pdray.transfer.remote import RemoteTransport
from pdray.transfer.remote_messages import (
    AddPeer,
    Ended,
    Lend,
    NotOpened,
    Opened,
    PeerAdded,
    Pull,
    RemovePeer,
)
from pdray.transfer.resharding import ReshardingTransport, region_of
from pdray.transfer.worker_description import WorkerDescription

NUM_BLOCKS = 4
LAYOUT = KVLayout(
    model_digest="model",
    groups=(
        KVGroup(
            group_id=0,
            layer_ids=(0,),
            sliding_window=None,
            num_kv_heads=1,
            k_head_dim=1,
            v_head_dim=1,
        ),
    ),
    block_size=16,
    dtype="bfloat16",
    tensor_parallel=2,
)


class Ranks:
    """``rank_1`` is the end of the pipe where rank 1's process would be."""

    def __init__(self) -> None:
        self.storage = KVStorage(LAYOUT, NUM_BLOCKS - 1, "cpu")
        self.region = region_of(self.storage)
        self.owner = LoopbackTransport("owner", self.region)
        own = LoopbackTransport("reader", self.region)
        ours, self.rank_1 = multiprocessing.Pipe()
        self.rank_1.send(Opened("loopback", LAYOUT.block_bytes, b"rank 1"))
        first = ReshardingTransport(own, self.storage, rank=0)
        self.transport = RankedTransport(LAYOUT, NUM_BLOCKS, first, [RemoteTransport(ours)])
        self.owners = WorkerDescription(
            layout=LAYOUT, num_blocks=NUM_BLOCKS, ranks=(self.owner.describe(), b"rank 1")
        ).encode()

    def add_owner(self) -> None:
        self.rank_1.send(PeerAdded(None))
        self.transport.add_peer("owner", self.owners)
        assert isinstance(self.rank_1.recv(), AddPeer)

    def pull(self) -> tuple[TransferId, Pull]:
        transfer_id = self.transport.pull("owner", [1, 2], [2, 3])
        asked = self.rank_1.recv()
        assert isinstance(asked, Pull)
        assert (asked.remote_ids, asked.local_ids) == ((1, 2), (2, 3))
        return transfer_id, asked


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.transport.close()
    ranks.owner.close()
    ranks.rank_1.close()


@pytest.mark.parametrize("state", [TransferState.DONE, TransferState.FAILED])
def test_a_read_ends_when_the_last_rank_has_ended(ranks: Ranks, state: TransferState) -> None:
    ranks.add_owner()
    transfer_id, asked = ranks.pull()
    assert ranks.transport.poll(transfer_id) is TransferState.PENDING
    assert ranks.transport.poll(transfer_id) is TransferState.PENDING
    ranks.rank_1.send(Ended(asked.transfer_id, state))
    assert ranks.transport.poll(transfer_id) is state


def test_a_read_that_one_rank_cannot_start_ends_failed_once_the_others_ended(
    ranks: Ranks,
) -> None:
    ranks.add_owner()
    ranks.owner.close()
    transfer_id, asked = ranks.pull()
    assert ranks.transport.poll(transfer_id) is TransferState.PENDING
    ranks.rank_1.send(Ended(asked.transfer_id, TransferState.DONE))
    assert ranks.transport.poll(transfer_id) is TransferState.FAILED
    ranks.owner = LoopbackTransport("owner", ranks.region)


def test_ends_that_come_while_a_peer_is_added_are_not_lost(ranks: Ranks) -> None:
    ranks.add_owner()
    transfer_id, asked = ranks.pull()
    ranks.rank_1.send(Ended(asked.transfer_id, TransferState.DONE))
    ranks.add_owner()
    assert ranks.transport.poll(transfer_id) is TransferState.DONE


def test_reads_of_a_rank_that_died_have_failed_and_none_can_start(ranks: Ranks) -> None:
    ranks.add_owner()
    transfer_id, _ = ranks.pull()
    ranks.rank_1.close()
    assert ranks.transport.poll(transfer_id) is TransferState.FAILED
    with pytest.raises(TransferError, match="a rank has died"):
        ranks.transport.pull("owner", [0], [0])
    with pytest.raises(TransferError, match="'owner' cannot be added: a rank has died"):
        ranks.transport.add_peer("owner", ranks.owners)
    ranks.transport.progress()


def test_a_peer_that_one_rank_refuses_is_readable_from_none(ranks: Ranks) -> None:
    ranks.rank_1.send(PeerAdded("no way to it"))
    with pytest.raises(TransferError, match="no way to it"):
        ranks.transport.add_peer("owner", ranks.owners)
    with pytest.raises(TransferError, match="unknown peer"):
        ranks.transport.pull("owner", [0], [0])


def test_a_removed_peer_is_removed_on_every_rank(ranks: Ranks) -> None:
    ranks.add_owner()
    ranks.transport.remove_peer("owner")
    assert ranks.rank_1.recv() == RemovePeer("owner")


def test_while_it_lends_the_other_ranks_are_told_now_and_then(ranks: Ranks) -> None:
    for _ in range(100):
        ranks.transport.progress()
    assert ranks.rank_1.recv() == Lend()
    assert not ranks.rank_1.poll()


def test_a_rank_without_a_transport_says_why() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.send(NotOpened("no UCX here"))
    with pytest.raises(TransferError, match="no UCX here"):
        RemoteTransport(ours)
    close(ours, theirs)
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(TransferError, match="its process has died"):
        RemoteTransport(ours)
    close(ours)


def close(*connections: Connection) -> None:
    for connection in connections:
        connection.close()


def test_a_worker_with_other_ranks_than_its_layout_says_is_none(ranks: Ranks) -> None:
    lone = WorkerDescription(layout=LAYOUT, num_blocks=NUM_BLOCKS, ranks=(b"rank 0",)).encode()
    with pytest.raises(TransferError, match="'lone' describes 1 ranks of 4 blocks"):
        ranks.transport.add_peer("lone", lone)
