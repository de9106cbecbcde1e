"""NIXL between real processes, through the transfer threads that workers use."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import pytest

from pdray.core.errors import TransferError
from pdray.transfer.transfer_thread import TransferThread
from tests.owner_process import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    OwnerProcess,
    owner_blocks,
    start_transfer_thread,
)

PATIENCE_S = 30.0
EVERYTHING = list(range(NUM_BLOCKS))


class Reader:
    """A transfer thread over zeroed blocks, and the owners that a test starts."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.blocks: npt.NDArray[np.uint8] = np.zeros((NUM_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        self.thread: TransferThread = start_transfer_thread("reader", self.blocks)
        stack.callback(self.thread.stop, drain_s=0.1)

    def meet_owner(self, peer_id: str, seed: int) -> OwnerProcess:
        owner = OwnerProcess(seed)
        self._stack.callback(owner.close)
        self.thread.add_peer(peer_id, owner.description).result(PATIENCE_S)
        return owner


@pytest.fixture(params=["default", "tcp,self"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Once with what UCX picks on one host, once with what it uses between hosts."""
    if request.param != "default":
        monkeypatch.setenv("UCX_TLS", request.param)
    with ExitStack() as stack:
        yield Reader(stack)


def test_bytes_of_another_process_arrive(reader: Reader) -> None:
    reader.meet_owner("owner", seed=1)
    remote, local = [63, 5, 6, 7, 0], [2, 60, 61, 9, 1]
    report = reader.thread.pull("owner", remote, local).result(PATIENCE_S)
    assert (report.num_blocks, report.num_bytes) == (5, 5 * BLOCK_BYTES)
    assert report.transfer_s > 0
    np.testing.assert_array_equal(reader.blocks[local], owner_blocks(1)[remote])
    assert not reader.blocks[3:9].any()


def test_pulls_of_two_processes_run_at_once(reader: Reader) -> None:
    reader.meet_owner("first", seed=1)
    reader.meet_owner("second", seed=2)
    halves = EVERYTHING[: NUM_BLOCKS // 2], EVERYTHING[NUM_BLOCKS // 2 :]
    futures = [reader.thread.pull("first", [i], [i]) for i in halves[0]]
    futures += [reader.thread.pull("second", [i], [i]) for i in halves[1]]
    for future in futures:
        future.result(PATIENCE_S)
    np.testing.assert_array_equal(reader.blocks[halves[0]], owner_blocks(1)[halves[0]])
    np.testing.assert_array_equal(reader.blocks[halves[1]], owner_blocks(2)[halves[1]])


@pytest.mark.parametrize("has_read_before", [False, True])
def test_a_pull_of_a_killed_owner_fails(reader: Reader, has_read_before: bool) -> None:
    owner = reader.meet_owner("owner", seed=1)
    if has_read_before:
        reader.thread.pull("owner", [0], [0]).result(PATIENCE_S)
    owner.process.kill()
    owner.process.join()
    for _ in range(2):
        with pytest.raises(TransferError):
            reader.thread.pull("owner", EVERYTHING, EVERYTHING).result(PATIENCE_S)
    assert reader.thread.is_running


def test_pending_pulls_of_an_owner_end_when_it_is_killed(reader: Reader) -> None:
    owner = reader.meet_owner("owner", seed=1)
    assert owner.process.pid is not None
    # The first read needs the owner to answer: a stopped one surely leaves these pending.
    os.kill(owner.process.pid, signal.SIGSTOP)
    futures = [reader.thread.pull("owner", EVERYTHING, EVERYTHING) for _ in range(3)]
    time.sleep(0.2)
    assert not any(future.done() for future in futures)
    assert not any(future.cancel() for future in futures)
    owner.process.kill()
    for future in futures:
        with pytest.raises(TransferError):
            future.result(PATIENCE_S)


def test_pulls_that_a_kill_cuts_short_arrive_whole_or_fail(reader: Reader) -> None:
    owner = reader.meet_owner("owner", seed=1)
    reader.thread.pull("owner", [0], [0]).result(PATIENCE_S)
    futures = [(i, reader.thread.pull("owner", [i], [i])) for i in EVERYTHING]
    owner.process.kill()
    truth = owner_blocks(1)
    for block, future in futures:
        try:
            future.result(PATIENCE_S)
        except TransferError:
            continue
        np.testing.assert_array_equal(reader.blocks[block], truth[block])


def test_the_next_life_of_a_killed_owner_can_be_read(reader: Reader) -> None:
    owner = reader.meet_owner("owner-1", seed=1)
    reader.thread.pull("owner-1", [0], [0]).result(PATIENCE_S)
    owner.process.kill()
    reader.thread.remove_peer("owner-1")
    reader.meet_owner("owner-2", seed=2)
    reader.thread.pull("owner-2", [4], [4]).result(PATIENCE_S)
    np.testing.assert_array_equal(reader.blocks[4], owner_blocks(2)[4])
    with pytest.raises(TransferError, match="unknown peer 'owner-1'"):
        reader.thread.pull("owner-1", [0], [0]).result(PATIENCE_S)


def test_a_pull_of_a_removed_owner_that_hangs_ends_when_it_goes_on(reader: Reader) -> None:
    owner = reader.meet_owner("owner", seed=1)
    assert owner.process.pid is not None
    os.kill(owner.process.pid, signal.SIGSTOP)
    future = reader.thread.pull("owner", [7], [7])
    reader.thread.remove_peer("owner")
    time.sleep(0.2)
    assert not future.done()
    os.kill(owner.process.pid, signal.SIGCONT)
    future.result(PATIENCE_S)
    np.testing.assert_array_equal(reader.blocks[7], owner_blocks(1)[7])
    reader.thread.add_peer("owner", owner.description).result(PATIENCE_S)
    reader.thread.pull("owner", [8], [8]).result(PATIENCE_S)
    np.testing.assert_array_equal(reader.blocks[8], owner_blocks(1)[8])


def test_an_idle_transfer_thread_takes_no_cpu(reader: Reader) -> None:
    reader.meet_owner("owner", seed=1)
    reader.thread.begin_lending()
    reader.thread.pull("owner", EVERYTHING, EVERYTHING).result(PATIENCE_S)
    reader.thread.end_lending()
    (thread,) = (each for each in threading.enumerate() if each.name == "pdray-transfer")
    assert thread.ident is not None
    clock_id = time.pthread_getcpuclockid(thread.ident)
    time.sleep(0.05)
    cpu_s, wall_s = time.clock_gettime(clock_id), time.monotonic()
    time.sleep(2)
    cpu_s, wall_s = time.clock_gettime(clock_id) - cpu_s, time.monotonic() - wall_s
    # The bound is the product's promise for an idle worker, and leaves a factor of a hundred.
    assert cpu_s / wall_s < 0.05
