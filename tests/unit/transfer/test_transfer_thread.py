from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from pdray.core.errors import StaleReadError, TransferError
from pdray.transfer import transfer_thread
from pdray.transfer.base import KVRegion, TransferId, TransferState
from pdray.transfer.loopback import LoopbackTransport
from pdray.transfer.transfer_thread import PullReport, TransferThread

NUM_BLOCKS = 16
BLOCK_BYTES = 512
PATIENCE_S = 20.0


class StubbornTransport(LoopbackTransport):
    """A loopback whose reads end only when the test lets them, and which can break."""

    def __init__(self, worker_id: str, region: KVRegion) -> None:
        super().__init__(worker_id, region)
        self.may_end = threading.Event()
        self.is_broken = False
        self.is_closed = False
        self.num_progress = 0
        self.owner_ident = threading.get_ident()

    def poll(self, transfer_id: TransferId) -> TransferState:
        assert threading.get_ident() == self.owner_ident
        if self.is_broken:
            raise RuntimeError("the transport broke")
        return super().poll(transfer_id) if self.may_end.is_set() else TransferState.PENDING

    def progress(self) -> None:
        self.num_progress += 1

    def close(self) -> None:
        self.is_closed = True
        super().close()


class Worker:
    """Blocks, a transfer thread over them, and its transport."""

    def __init__(self, worker_id: str, fill: int) -> None:
        self.blocks: npt.NDArray[np.uint8] = np.full((NUM_BLOCKS, BLOCK_BYTES), fill, np.uint8)
        self._worker_id = worker_id
        self.thread = TransferThread(self._make_transport)
        self.thread.start()

    def _make_transport(self) -> StubbornTransport:
        region = KVRegion(
            address=self.blocks.ctypes.data,
            num_blocks=NUM_BLOCKS,
            block_bytes=BLOCK_BYTES,
            device_id=None,
        )
        self.transport = StubbornTransport(self._worker_id, region)
        return self.transport


@pytest.fixture
def workers() -> Iterator[tuple[Worker, Worker]]:
    """An owner whose blocks are all 7, and a reader that knows it."""
    with ExitStack() as stack:
        owner, reader = Worker("owner", 7), Worker("reader", 0)
        stack.callback(owner.thread.stop)
        stack.callback(reader.thread.stop, drain_s=0)
        reader.thread.add_peer("owner", owner.thread.describe()).result(PATIENCE_S)
        yield owner, reader


def test_a_pull_reports_what_it_moved(workers: tuple[Worker, Worker]) -> None:
    _, reader = workers
    reader.transport.may_end.set()
    report = reader.thread.pull("owner", [1, 2, 3], [4, 5, 6]).result(PATIENCE_S)
    assert (report.num_blocks, report.num_bytes) == (3, 3 * BLOCK_BYTES)
    assert (reader.blocks[4:7] == 7).all()


def test_pulls_of_many_threads_all_end(workers: tuple[Worker, Worker]) -> None:
    _, reader = workers
    reader.transport.may_end.set()
    futures: list[Future[PullReport]] = []

    def pull_all() -> None:
        futures.extend(reader.thread.pull("owner", [i], [i]) for i in range(NUM_BLOCKS))

    threads = [threading.Thread(target=pull_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wait(futures, PATIENCE_S).done) == 4 * NUM_BLOCKS
    assert sum(future.result().num_blocks for future in futures) == 4 * NUM_BLOCKS


def test_a_pull_cannot_be_cancelled(workers: tuple[Worker, Worker]) -> None:
    _, reader = workers
    future = reader.thread.pull("owner", [0], [0])
    assert not future.cancel()
    assert not future.done()
    reader.transport.may_end.set()
    assert future.result(PATIENCE_S).num_blocks == 1


def test_what_was_read_under_a_lease_that_is_over_does_not_count(
    workers: tuple[Worker, Worker],
) -> None:
    owner, reader = workers
    epoch = owner.thread.epochs.take()
    assert epoch is not None
    in_time = reader.thread.pull("owner", [1], [1], epoch=epoch)
    reader.transport.may_end.set()
    assert in_time.result(PATIENCE_S).num_blocks == 1
    reader.transport.may_end.clear()
    too_late = reader.thread.pull("owner", [1], [1], epoch=epoch)
    owner.thread.epochs.end(epoch)
    reader.transport.may_end.set()
    with pytest.raises(StaleReadError, match="the lease of 'owner' was over"):
        too_late.result(PATIENCE_S)


def test_errors_of_one_call_are_that_calls_alone(workers: tuple[Worker, Worker]) -> None:
    _, reader = workers
    reader.transport.may_end.set()
    with pytest.raises(TransferError, match="unknown peer 'nobody'"):
        reader.thread.pull("nobody", [0], [0]).result(PATIENCE_S)
    with pytest.raises(TransferError, match="local block id 16"):
        reader.thread.pull("owner", [0], [NUM_BLOCKS]).result(PATIENCE_S)
    with pytest.raises(TransferError, match="no arena description"):
        reader.thread.add_peer("odd", b"odd").result(PATIENCE_S)
    reader.thread.pull("owner", [0], [0]).result(PATIENCE_S)
    reader.thread.remove_peer("owner")
    with pytest.raises(TransferError, match="unknown peer 'owner'"):
        reader.thread.pull("owner", [0], [0]).result(PATIENCE_S)


def test_a_failed_read_fails_its_future(workers: tuple[Worker, Worker]) -> None:
    owner, reader = workers
    future = reader.thread.pull("owner", [0, 1], [0, 1])
    reader.thread.add_peer("owner", owner.thread.describe()).result(PATIENCE_S)
    owner.thread.stop()
    reader.transport.may_end.set()
    with pytest.raises(TransferError, match="a read of 2 blocks of peer 'owner' failed"):
        future.result(PATIENCE_S)


def test_a_short_pull_does_not_wait_for_the_whole_of_a_long_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer_thread, "SLICE_BYTES", 2 * BLOCK_BYTES)
    monkeypatch.setattr(transfer_thread, "MAX_BYTES_IN_FLIGHT", 4 * BLOCK_BYTES)
    with ExitStack() as stack:
        owner, reader = Worker("owner", 7), Worker("reader", 0)
        stack.callback(owner.thread.stop)
        stack.callback(reader.thread.stop, drain_s=0)
        reader.thread.add_peer("owner", owner.thread.describe()).result(PATIENCE_S)
        ends: list[str] = []
        long = reader.thread.pull("owner", range(12), range(12), flow="long")
        long.add_done_callback(lambda _: ends.append("long"))
        short = reader.thread.pull("owner", [12, 13], [12, 13], flow="short")
        short.add_done_callback(lambda _: ends.append("short"))
        reader.transport.may_end.set()
        wait([long, short], PATIENCE_S)
        assert ends == ["short", "long"]
        assert (reader.blocks[:14] == 7).all()
        assert long.result().num_bytes == 12 * BLOCK_BYTES
        assert short.result().queued_s >= 0


def test_a_pull_whose_part_fails_ends_when_its_other_parts_have(
    monkeypatch: pytest.MonkeyPatch, workers: tuple[Worker, Worker]
) -> None:
    _, reader = workers
    monkeypatch.setattr(transfer_thread, "SLICE_BYTES", BLOCK_BYTES)
    with ExitStack() as stack:
        sliced = Worker("sliced", 0)
        stack.callback(sliced.thread.stop, drain_s=0)
        sliced.thread.add_peer("reader", reader.thread.describe()).result(PATIENCE_S)
        future = sliced.thread.pull("reader", [0, 1, NUM_BLOCKS, 2], [0, 1, 2, 3])
        # This answer comes after the pull was begun, and its third part refused.
        sliced.thread.add_peer("reader", reader.thread.describe()).result(PATIENCE_S)
        assert not future.done(), "two of its parts may still touch memory"
        sliced.transport.may_end.set()
        with pytest.raises(TransferError, match=f"remote block id {NUM_BLOCKS}"):
            future.result(PATIENCE_S)
        sliced.thread.pull("reader", [0], [0]).result(PATIENCE_S)


@pytest.mark.parametrize("num_lent", [0, 2])
def test_it_moves_peers_reads_on_also_those_that_outlived_their_lease(
    workers: tuple[Worker, Worker], num_lent: int
) -> None:
    owner, _ = workers
    for _ in range(num_lent):
        owner.thread.begin_lending()
    count = owner.transport.num_progress
    deadline = time.monotonic() + PATIENCE_S
    while owner.transport.num_progress < count + 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stopping_waits_for_reads_that_end(workers: tuple[Worker, Worker]) -> None:
    _, reader = workers
    future = reader.thread.pull("owner", [0], [0])
    stopping = threading.Thread(target=reader.thread.stop)
    stopping.start()
    reader.transport.may_end.set()
    stopping.join(PATIENCE_S)
    assert future.result(0).num_blocks == 1
    assert reader.transport.is_closed


def test_stopping_fails_what_does_not_end_but_only_once_the_transport_is_closed(
    workers: tuple[Worker, Worker],
) -> None:
    _, reader = workers
    future = reader.thread.pull("owner", [0], [0])
    was_closed: list[bool] = []
    future.add_done_callback(lambda _: was_closed.append(reader.transport.is_closed))
    reader.thread.stop(drain_s=0)
    reader.thread.stop()
    with pytest.raises(TransferError, match="was stopped"):
        future.result(0)
    assert was_closed == [True]
    assert not reader.thread.is_running
    with pytest.raises(TransferError, match="was stopped"):
        reader.thread.pull("owner", [0], [0]).result(0)
    reader.thread.remove_peer("owner")


def test_an_error_in_the_thread_is_logged_and_fails_everything(
    workers: tuple[Worker, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    _, reader = workers
    futures = [reader.thread.pull("owner", [i], [i]) for i in range(3)]
    with caplog.at_level(logging.ERROR):
        reader.transport.is_broken = True
        for future in futures:
            with pytest.raises(TransferError, match=r"transfer thread failed.*broke"):
                future.result(PATIENCE_S)
    assert "the transfer thread failed" in caplog.text
    assert reader.transport.is_closed
    assert not reader.thread.is_running
    with pytest.raises(TransferError, match="transfer thread failed"):
        reader.thread.add_peer("owner", b"").result(0)


def test_a_transport_that_cannot_be_made_fails_the_start() -> None:
    region = KVRegion(address=0, num_blocks=1, block_bytes=1, device_id=3)
    thread = TransferThread(lambda: LoopbackTransport("gpu", region))
    with pytest.raises(TransferError, match="loopback copies host memory only, not device 3"):
        thread.start()
    thread.stop()
    assert not thread.is_running
    with pytest.raises(TransferError, match="could not be made"):
        thread.pull("owner", [0], [0]).result(0)
