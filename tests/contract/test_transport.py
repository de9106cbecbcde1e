"""What every transport must do, whichever it is: DESIGN.md section 5's reads, from outside."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from pdray.core.errors import TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.kvcache.layout import KVGroup, KVLayout
from pdray.kvcache.storage import KVStorage
from pdray.transfer import TRANSPORTS, create_transport
from pdray.transfer.base import BlockPart, EpochTransport, KVRegion, TransferId, TransferState
from pdray.transfer.ranked import RankedTransport
from pdray.transfer.remote import RemoteTransport
from pdray.transfer.remote_server import serve_transport
from pdray.transfer.resharding import ReshardingTransport

NUM_BLOCKS = 24
BLOCK_BYTES = 4096
PATIENCE_S = 30.0


RANKED_LAYOUT = KVLayout(
    model_digest="model",
    groups=(
        KVGroup(
            group_id=0,
            layer_ids=(0,),
            sliding_window=None,
            num_kv_heads=1,
            k_head_dim=32,
            v_head_dim=32,
        ),
    ),
    block_size=16,
    dtype="float32",
    tensor_parallel=2,
)
RANKED = "two ranks of nixl"
"""A worker of two ranks: the second one's transport is in a thread, at the end of a pipe."""


class Arena:
    """Host memory in blocks, and the transport over it; of a ranked one, each rank's part of a
    block is a row of it."""

    def __init__(
        self, name: str, worker_id: str, *, seed: int | None, block_bytes: int = BLOCK_BYTES
    ) -> None:
        size = (2 if name == RANKED else 1, NUM_BLOCKS, block_bytes)
        self._parts: npt.NDArray[np.uint8] = np.zeros(size, dtype=np.uint8)
        if seed is not None:
            self._parts[:] = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
        self.blocks = self._parts.swapaxes(0, 1)
        self._threads: list[threading.Thread] = []
        self.transport: EpochTransport
        if name == RANKED:
            first = self._make_rank(worker_id, 0)
            others = [self._make_remote(worker_id)]
            self.transport = RankedTransport(RANKED_LAYOUT, NUM_BLOCKS, first, others)
        else:
            self.transport = create_transport(name, worker_id, self._region(0))

    def close(self) -> None:
        self.transport.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    @property
    def region(self) -> KVRegion:
        return self._region(0)

    def _region(self, rank: int) -> KVRegion:
        return KVRegion(
            address=self._parts[rank].ctypes.data,
            num_blocks=NUM_BLOCKS,
            block_bytes=self._parts.shape[2],
            device_id=None,
        )

    def _make_rank(self, worker_id: str, rank: int) -> ReshardingTransport:
        # With one layout on both sides, the memory that is read is the region's.
        storage = KVStorage(RANKED_LAYOUT, 1, "cpu")
        transport = create_transport("nixl", f"{worker_id}.{rank}", self._region(rank))
        return ReshardingTransport(transport, storage, rank=rank)

    def _make_remote(self, worker_id: str) -> RemoteTransport:
        ours, theirs = multiprocessing.Pipe()
        make = partial(self._make_rank, worker_id, 1)
        thread = threading.Thread(target=serve_transport, args=(theirs, make))
        thread.start()
        self._threads.append(thread)
        return RemoteTransport(ours)


class Pair:
    """An owner whose blocks hold random bytes, and a reader whose blocks are zero."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._arenas: list[Arena] = []
        self.owner = self.make_arena("owner", seed=1)
        self.reader = self.make_arena("reader", seed=None)
        self.reader.transport.add_peer("owner", self.owner.transport.describe())

    def make_arena(
        self, worker_id: str, *, seed: int | None, block_bytes: int = BLOCK_BYTES
    ) -> Arena:
        arena = Arena(self.name, worker_id, seed=seed, block_bytes=block_bytes)
        self._arenas.append(arena)
        return arena

    def pull(self, remote: list[int], local: list[int], peer_id: str = "owner") -> TransferId:
        return self.reader.transport.pull(peer_id, remote, local)

    def finish(self, *transfer_ids: TransferId) -> list[TransferState]:
        """Polls as both sides would, until all have ended."""
        states: dict[TransferId, TransferState] = {}
        until = time.monotonic() + PATIENCE_S
        while len(states) < len(transfer_ids) and time.monotonic() < until:
            for arena in self._arenas:
                arena.transport.progress()
            for transfer_id in transfer_ids:
                if transfer_id not in states:
                    state = self.reader.transport.poll(transfer_id)
                    if state is not TransferState.PENDING:
                        states[transfer_id] = state
        return [states[transfer_id] for transfer_id in transfer_ids]

    def close_arena(self, arena: Arena) -> None:
        self._arenas.remove(arena)
        arena.close()

    def close(self) -> None:
        for arena in self._arenas:
            arena.close()


@contextmanager
def open_pair(name: str) -> Iterator[Pair]:
    pair = Pair(name)
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(params=[*TRANSPORTS.names(), RANKED])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with open_pair(request.param) as made:
        yield made


def test_scattered_blocks_arrive_byte_for_byte_and_no_other_is_touched(pair: Pair) -> None:
    remote, local = [23, 0, 7, 8, 9, 2], [1, 22, 5, 3, 4, 0]
    assert pair.finish(pair.pull(remote, local)) == [TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[local], pair.owner.blocks[remote])
    others = sorted(set(range(NUM_BLOCKS)) - set(local))
    assert not pair.reader.blocks[others].any()


def test_a_whole_arena_arrives_in_one_pull(pair: Pair) -> None:
    everything = list(range(NUM_BLOCKS))
    assert pair.finish(pair.pull(everything, everything[::-1])) == [TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[::-1], pair.owner.blocks)


def test_many_pulls_are_in_flight_at_once(pair: Pair) -> None:
    ids = [pair.pull([block], [NUM_BLOCKS - 1 - block]) for block in range(NUM_BLOCKS)]
    assert pair.finish(*ids) == [TransferState.DONE] * NUM_BLOCKS
    np.testing.assert_array_equal(pair.reader.blocks[::-1], pair.owner.blocks)


def test_a_pull_sees_what_the_owner_wrote_since_the_last_one(pair: Pair) -> None:
    assert pair.finish(pair.pull([3], [3])) == [TransferState.DONE]
    pair.owner.blocks[3] = 77
    assert pair.finish(pair.pull([3], [3])) == [TransferState.DONE]
    assert (pair.reader.blocks[3] == 77).all()


def test_two_workers_read_each_other_and_a_third(pair: Pair) -> None:
    third = pair.make_arena("third", seed=3)
    pair.reader.transport.add_peer("third", third.transport.describe())
    pair.owner.transport.add_peer("third", third.transport.describe())
    ids = [pair.pull([1], [1]), pair.pull([2], [2], "third")]
    assert pair.finish(*ids) == [TransferState.DONE, TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[1], pair.owner.blocks[1])
    np.testing.assert_array_equal(pair.reader.blocks[2], third.blocks[2])


@pytest.mark.parametrize(
    ("remote", "local", "message"),
    [
        ([NUM_BLOCKS], [0], r"remote block id 24 is not in 0\.\.23"),
        ([0], [NUM_BLOCKS], r"local block id 24 is not in 0\.\.23"),
        ([-1], [0], "remote block id -1"),
        ([0, 1], [0], "2 remote blocks into 1 local"),
        ([], [], "no blocks"),
    ],
)
def test_a_pull_that_makes_no_sense_is_refused(
    pair: Pair, remote: list[int], local: list[int], message: str
) -> None:
    with pytest.raises(TransferError, match=message):
        pair.pull(remote, local)
    assert pair.finish(pair.pull([0], [0])) == [TransferState.DONE]


def test_an_unknown_peer_is_refused_and_the_known_ones_named(pair: Pair) -> None:
    with pytest.raises(TransferError, match=r"unknown peer 'nobody'; known: \['owner'\]"):
        pair.pull([0], [0], "nobody")


@pytest.mark.parametrize("name", TRANSPORTS.names())
def test_blocks_of_another_size_are_not_copied_whole(name: str) -> None:
    with open_pair(name) as pair:
        other = pair.make_arena("other", seed=2, block_bytes=2 * BLOCK_BYTES)
        pair.reader.transport.add_peer("other", other.transport.describe())
        with pytest.raises(TransferError, match=r"'other'.* 8192 bytes, this worker of 4096"):
            pair.pull([0], [0], "other")


@pytest.mark.parametrize("name", TRANSPORTS.names())
def test_a_part_of_each_block_goes_to_its_place_in_the_arena_or_beside_it(name: str) -> None:
    slots = np.zeros((NUM_BLOCKS, 100), dtype=np.uint8)
    beside = KVRegion(
        address=slots.ctypes.data, num_blocks=NUM_BLOCKS, block_bytes=100, device_id=None
    )
    with open_pair(name) as pair:
        other = pair.make_arena("other", seed=2, block_bytes=2 * BLOCK_BYTES)
        transport = create_transport(name, "parts", region := pair.reader.region)
        try:
            transport.register(beside)
            transport.add_peer("other", other.transport.describe())
            remote, local = [7, 0, 23], [1, 22, 0]
            for where, offset in ((region, 8), (beside, 4)):
                part = BlockPart(remote_offset=5000, num_bytes=96, local=where, local_offset=offset)
                transfer_id = transport.pull_part("other", part, remote, local)
                while (state := transport.poll(transfer_id)) is TransferState.PENDING:
                    other.transport.progress()
                assert state is TransferState.DONE
            part = BlockPart(remote_offset=8100, num_bytes=96, local=beside, local_offset=0)
            with pytest.raises(TransferError, match="96 bytes at 8100 of remote blocks"):
                transport.pull_part("other", part, remote, local)
        finally:
            transport.close()
        read = other.blocks[remote, 0, 5000:5096]
        np.testing.assert_array_equal(pair.reader.blocks[local, 0, 8:104], read)
        np.testing.assert_array_equal(slots[local, 4:], read)
        assert not slots[:, :4].any()
        assert not pair.reader.blocks[:, 0, :8].any()
        assert not pair.reader.blocks[:, 0, 104:].any()


def test_another_transport_is_refused_naming_both(pair: Pair) -> None:
    other_name = next(name for name in TRANSPORTS.names() if name != pair.name)
    message = f"{other_name!r}, this worker {pair.name!r}"
    if pair.name == RANKED:
        message = "'other' sent no worker's description"
    with open_pair(other_name) as other:
        description = other.owner.transport.describe()
        with pytest.raises(TransferError, match=message):
            pair.reader.transport.add_peer("other", description)


@pytest.mark.parametrize("description", [b"", b"nonsense", b"\x81\xa1a\x01"])
def test_a_description_that_is_none_is_refused(pair: Pair, description: bytes) -> None:
    with pytest.raises(TransferError, match="'odd'"):
        pair.reader.transport.add_peer("odd", description)


def test_a_cut_description_is_refused(pair: Pair) -> None:
    with pytest.raises(TransferError, match="'odd'"):
        pair.reader.transport.add_peer("odd", pair.owner.transport.describe()[:-9])


def test_a_removed_peer_is_unknown_and_can_be_added_again(pair: Pair) -> None:
    assert pair.finish(pair.pull([0], [0])) == [TransferState.DONE]
    pair.reader.transport.remove_peer("owner")
    pair.reader.transport.remove_peer("owner")
    with pytest.raises(TransferError, match="unknown peer"):
        pair.pull([1], [1])
    pair.reader.transport.add_peer("owner", pair.owner.transport.describe())
    assert pair.finish(pair.pull([1], [1])) == [TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[1], pair.owner.blocks[1])


def test_adding_a_known_peer_again_does_no_harm(pair: Pair) -> None:
    pending = pair.pull([4], [4])
    pair.reader.transport.add_peer("owner", pair.owner.transport.describe())
    assert pair.finish(pending, pair.pull([5], [5])) == [TransferState.DONE] * 2


def test_a_peer_of_the_same_name_can_be_another_worker(pair: Pair) -> None:
    restarted = pair.make_arena("owner", seed=9)
    pair.reader.transport.add_peer("owner", restarted.transport.describe())
    assert pair.finish(pair.pull([6], [6])) == [TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[6], restarted.blocks[6])


def test_reads_of_a_removed_peer_still_end(pair: Pair) -> None:
    ids = [pair.pull([block], [block]) for block in range(4)]
    pair.reader.transport.remove_peer("owner")
    for state, block in zip(pair.finish(*ids), range(4), strict=True):
        assert state in (TransferState.DONE, TransferState.FAILED)
        if state is TransferState.DONE:
            np.testing.assert_array_equal(pair.reader.blocks[block], pair.owner.blocks[block])


def test_reads_of_an_owner_that_closed_end_and_other_peers_are_not_touched(pair: Pair) -> None:
    other = pair.make_arena("other", seed=5)
    pair.reader.transport.add_peer("other", other.transport.describe())
    ids = [pair.pull([0], [0]), pair.pull([0], [1], "other")]
    assert pair.finish(*ids) == [TransferState.DONE] * 2
    pair.close_arena(pair.owner)
    try:
        (state,) = pair.finish(pair.pull([2], [2]))
    except TransferError:
        state = TransferState.FAILED
    # The kernel copies from a process that is there, whether or not it has closed.
    if state is TransferState.DONE:
        np.testing.assert_array_equal(pair.reader.blocks[2], pair.owner.blocks[2])
    assert pair.finish(pair.pull([3], [3], "other")) == [TransferState.DONE]
    np.testing.assert_array_equal(pair.reader.blocks[3], other.blocks[3])


def test_a_transport_closes_with_reads_pending(pair: Pair) -> None:
    pair.pull([0, 1, 2], [0, 1, 2])
    pair.close_arena(pair.reader)
    again = pair.make_arena("reader", seed=None)
    again.transport.add_peer("owner", pair.owner.transport.describe())
    pair.reader = again
    assert pair.finish(pair.pull([0], [0])) == [TransferState.DONE]


def test_an_unknown_transport_is_answered_with_the_known_ones() -> None:
    region = KVRegion(address=0, num_blocks=1, block_bytes=1, device_id=None)
    with pytest.raises(KeyError, match="unknown transport 'carrier_pigeon'; known: loopback, nixl"):
        create_transport("carrier_pigeon", "worker", region)


def test_an_epoch_is_good_until_its_lease_ends(pair: Pair) -> None:
    ended, lasting = (pair.owner.transport.epochs.take() for _ in range(2))
    assert ended is not None
    assert lasting is not None
    check = pair.reader.transport.check_epoch
    checks = [check("owner", epoch) for epoch in (ended, lasting, ended)]
    assert pair.finish(*checks) == [TransferState.DONE] * 3
    pair.owner.transport.epochs.end(ended)
    again = pair.owner.transport.epochs.take()
    assert again is not None
    assert again.slot == ended.slot
    checks = [check("owner", epoch) for epoch in (ended, lasting, again)]
    states = [TransferState.FAILED, TransferState.DONE, TransferState.DONE]
    assert pair.finish(*checks) == states


def test_a_stale_epoch_costs_the_peer_nothing(pair: Pair) -> None:
    epoch = pair.owner.transport.epochs.take()
    assert epoch is not None
    pair.owner.transport.epochs.end(epoch)
    assert pair.finish(pair.reader.transport.check_epoch("owner", epoch)) == [TransferState.FAILED]
    assert pair.finish(pair.pull([3], [4])) == [TransferState.DONE]
    assert np.array_equal(pair.reader.blocks[4], pair.owner.blocks[3])


def test_an_epoch_that_cannot_be_read_is_none(pair: Pair) -> None:
    check = pair.reader.transport.check_epoch
    with pytest.raises(TransferError, match="unknown peer 'nobody'"):
        check("nobody", LeaseEpoch(slot=0, value=0))
    num_slots = pair.owner.transport.epochs.num_slots
    with pytest.raises(TransferError, match=f"epoch slot {num_slots} is not in"):
        check("owner", LeaseEpoch(slot=num_slots, value=0))
