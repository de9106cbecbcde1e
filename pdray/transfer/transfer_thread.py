"""The one thread that owns a worker's transport, and how the rest of the process talks to it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from pdray.core.errors import StaleReadError, TransferError
from pdray.core.handoff import LeaseEpoch
from pdray.transfer.base import TransferId, TransferState, WorkerTransport
from pdray.transfer.epochs import Epochs
from pdray.transfer.read_queue import Read, ReadQueue, Slice

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.0005
"""Between polls while something moves; with UCX over TCP that moves some 1.6 GB/s."""
IDLE_POLL_INTERVAL_S = 0.2
"""Between polls else: a read that outlived its lease, as where a link was cut, still ends when its
owner polls, and its reader's blocks are quarantined until then."""
MAX_BYTES_IN_FLIGHT = 64 * 2**20
"""Of each peer's blocks. Enough for 100 GB/s between two polls."""
SLICE_BYTES = 4 * 2**20
"""What a request may read before it is another one's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """Blocks that have arrived, or units of them where the peer has another layout. They waited
    ``queued_s`` for others' reads of the same peer, and ``transfer_s`` is from their first read's
    start until the last was seen to be done."""

    num_blocks: int
    num_bytes: int
    queued_s: float
    transfer_s: float


@dataclass(slots=True)
class _Pull:
    """``failure`` is set once one of its reads has failed: it ends when the others have."""

    future: Future[PullReport]
    asked_at: float
    epoch: LeaseEpoch | None
    num_bytes: int = 0
    started_at: float | None = None
    failure: TransferError | None = None


class TransferThread:
    """Owns a transport in a thread of its own; every method may be called from any thread.

    It polls while reads are pending or blocks are lent, and else now and then. Pulls are cut into
    slices and take turns (read_queue.py).
    Its futures cannot be cancelled: a pull's ends when its read can touch memory no more.
    """

    def __init__(self, make_transport: Callable[[], WorkerTransport]) -> None:
        """``make_transport`` is called in the thread, which will be the transport's owner."""
        self._make_transport = make_transport
        self._thread = threading.Thread(target=self._run, name="pdray-transfer", daemon=True)
        self._description: Future[bytes] = Future()
        self._wake = threading.Condition()
        # Under the condition's lock; the pulls belong to the thread alone.
        self._commands: deque[Callable[[WorkerTransport], None]] = deque()
        self._unfinished: set[Future[None] | Future[PullReport]] = set()
        self._num_lending = 0
        self._drain_until: float | None = None
        self._closed_because: str | None = None
        self._pulls: dict[Read, _Pull] = {}
        self._in_flight: dict[TransferId, Slice] = {}
        self._checks: dict[TransferId, Read] = {}

    def start(self) -> None:
        """Returns once the transport is there. Raises what making it raised."""
        self._thread.start()
        self._description.result()

    def stop(self, *, drain_s: float = 5.0) -> None:
        """Gives pending reads ``drain_s`` to end, then closes the transport and fails the rest.
        From now on every future fails with TransferError. May be called twice."""
        with self._wake:
            if self._drain_until is None:
                self._drain_until = time.monotonic() + drain_s
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """False before ``start``, after ``stop``, and after an error that ended the thread."""
        return self._thread.is_alive() and self._closed_because is None

    def describe(self) -> bytes:
        """What peers need for their ``add_peer``."""
        return self._description.result()

    @property
    def epochs(self) -> Epochs:
        """Of the leases that this worker gives; for one thread, whichever."""
        return self._epochs

    def add_peer(self, peer_id: str, description: bytes) -> Future[None]:
        """Makes ``peer_id`` readable, or fails with TransferError."""
        future: Future[None] = Future()

        def run(transport: WorkerTransport) -> None:
            try:
                transport.add_peer(peer_id, description)
            except TransferError as error:
                self._fail(future, error)
            else:
                self._forget(future)
                future.set_result(None)

        self._submit(run, future)
        return future

    def remove_peer(self, peer_id: str) -> None:
        """Forgets a peer; its pending reads still end as they end."""
        self._submit(lambda transport: transport.remove_peer(peer_id), None)

    def pull(
        self,
        peer_id: str,
        remote_block_ids: Sequence[int],
        local_block_ids: Sequence[int],
        *,
        flow: str = "",
        epoch: LeaseEpoch | None = None,
    ) -> Future[PullReport]:
        """Copies remote block i into local block i. Pulls of one peer with unlike ``flow``, the
        name of who waits for them, take turns. With an ``epoch``, what was read counts only
        where it is still the lease's when all is read. Fails with TransferError, StaleReadError
        where the lease was over; the local blocks must stay untouched until the future has ended,
        however it does."""
        pull = _Pull(Future(), time.perf_counter(), epoch)
        read = Read(
            peer_id=peer_id,
            flow=flow,
            remote_block_ids=tuple(remote_block_ids),
            local_block_ids=tuple(local_block_ids),
        )

        def run(transport: WorkerTransport) -> None:
            self._pulls[read] = pull
            pull.num_bytes = transport.num_bytes(peer_id, len(read.local_block_ids))
            if len(read.remote_block_ids) == len(read.local_block_ids) > 0:
                self._queue.add(read)
                self._start_reads(transport)  # before a command that comes after it
            else:
                pull.failure = TransferError(
                    f"a pull of {len(read.remote_block_ids)} remote blocks into "
                    f"{len(read.local_block_ids)} local ones; both lists must have the same "
                    "length, of at least 1"
                )
                self._end_pull(read)

        self._submit(run, pull.future)
        return pull.future

    def begin_lending(self) -> None:
        """A peer may read our blocks from now on; each call needs its ``end_lending``."""
        with self._wake:
            self._num_lending += 1
            if self._num_lending == 1:
                self._wake.notify()

    def end_lending(self) -> None:
        with self._wake:
            assert self._num_lending > 0, "end_lending without its begin_lending"
            self._num_lending -= 1

    def _submit(
        self,
        command: Callable[[WorkerTransport], None],
        future: Future[None] | Future[PullReport] | None,
    ) -> None:
        if future is not None:
            # A running future refuses cancel(): a read cannot be taken back.
            future.set_running_or_notify_cancel()
        with self._wake:
            reason = self._closed_because
            if reason is None and self._drain_until is not None:
                reason = "the transfer thread is stopping"
            if reason is None:
                self._commands.append(command)
                if future is not None:
                    self._unfinished.add(future)
                self._wake.notify()
        if reason is not None and future is not None:
            future.set_exception(TransferError(reason))

    def _run(self) -> None:
        try:
            transport = self._make_transport()
            self._queue = make_queue(transport.block_bytes)
            self._epochs = transport.epochs
            self._description.set_result(transport.describe())
        except Exception as error:  # the thread's outermost level: `start` raises it
            self._end(f"the transport could not be made: {error!r}")
            self._description.set_exception(error)
            return
        reason = "the transfer thread was stopped"
        try:
            while self._wait_for_work():
                self._run_commands(transport)
                self._move_reads(transport)
                self._poll_checks(transport)
                transport.progress()
        except Exception as error:  # the thread's outermost level
            logger.exception("the transfer thread failed: no more KV moves from or to this worker")
            reason = f"the transfer thread failed: {error!r}"
        try:
            transport.close()
        except Exception:  # the thread's outermost level
            logger.exception("the transport did not close")
        self._end(reason)

    def _wait_for_work(self) -> bool:
        """Sleeps until there is something to do; False where the thread is to end."""
        with self._wake:
            is_busy = bool(self._pulls or self._num_lending)
            if not self._commands and (is_busy or self._drain_until is None):
                self._wake.wait(POLL_INTERVAL_S if is_busy else IDLE_POLL_INTERVAL_S)
            if self._drain_until is None:
                return True
            has_work = bool(self._commands or self._pulls)
            return has_work and time.monotonic() < self._drain_until

    def _run_commands(self, transport: WorkerTransport) -> None:
        while True:
            with self._wake:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command(transport)

    def _move_reads(self, transport: WorkerTransport) -> None:
        """Until no more can be started: a read that ends makes room for the next at once."""
        while True:
            self._start_reads(transport)
            if not self._poll_reads(transport) or not self._queue.has_waiting or self._commands:
                return

    def _start_reads(self, transport: WorkerTransport) -> None:
        while (taken := self._queue.take()) is not None:
            read, pull = taken.read, self._pulls[taken.read]
            pull.started_at = pull.started_at or time.perf_counter()
            try:
                transfer_id = transport.pull(
                    read.peer_id, taken.remote_block_ids, taken.local_block_ids
                )
            except TransferError as error:
                self._end_slice(transport, taken, error)
            else:
                self._in_flight[transfer_id] = taken

    def _poll_reads(self, transport: WorkerTransport) -> bool:
        """Whether any has ended."""
        num_before = len(self._in_flight)
        for transfer_id, taken in list(self._in_flight.items()):
            state = transport.poll(transfer_id)
            if state is TransferState.PENDING:
                continue
            del self._in_flight[transfer_id]
            error = f"a read of {taken.num_blocks} blocks of peer {taken.read.peer_id!r} failed"
            self._end_slice(
                transport, taken, TransferError(error) if state is TransferState.FAILED else None
            )
        return len(self._in_flight) < num_before

    def _end_slice(
        self, transport: WorkerTransport, taken: Slice, error: TransferError | None
    ) -> None:
        self._queue.ended(taken)
        if error is not None:
            self._pulls[taken.read].failure = error
            self._queue.drop(taken.read)
        if taken.read.is_over:
            self._check_epoch(transport, taken.read)

    def _check_epoch(self, transport: WorkerTransport, read: Read) -> None:
        """All of its data is here, or will never be."""
        pull = self._pulls[read]
        if pull.failure is None and pull.epoch is not None:
            try:
                self._checks[transport.check_epoch(read.peer_id, pull.epoch)] = read
                return
            except TransferError as error:
                pull.failure = error
        self._end_pull(read)

    def _poll_checks(self, transport: WorkerTransport) -> None:
        for transfer_id, read in list(self._checks.items()):
            state = transport.poll(transfer_id)
            if state is TransferState.PENDING:
                continue
            del self._checks[transfer_id]
            if state is TransferState.FAILED:
                error = f"the lease of {read.peer_id!r} was over, or its end could not be ruled out"
                self._pulls[read].failure = StaleReadError(error)
            self._end_pull(read)

    def _end_pull(self, read: Read) -> None:
        pull = self._pulls.pop(read)
        if pull.failure is not None:
            self._fail(pull.future, pull.failure)
            return
        assert pull.started_at is not None
        report = PullReport(
            num_blocks=len(read.local_block_ids),
            num_bytes=pull.num_bytes,
            queued_s=pull.started_at - pull.asked_at,
            transfer_s=time.perf_counter() - pull.started_at,
        )
        self._forget(pull.future)
        pull.future.set_result(report)

    def _end(self, reason: str) -> None:
        """Once the transport is closed no read is left: all that is unfinished fails."""
        with self._wake:
            self._closed_because = reason
            self._commands.clear()
            unfinished = list(self._unfinished)
        self._pulls.clear()
        self._in_flight.clear()
        self._checks.clear()
        for future in unfinished:
            self._fail(future, TransferError(reason))

    def _fail(self, future: Future[None] | Future[PullReport], error: TransferError) -> None:
        self._forget(future)
        future.set_exception(error)

    def _forget(self, future: Future[None] | Future[PullReport]) -> None:
        with self._wake:
            self._unfinished.discard(future)


def make_queue(block_bytes: int) -> ReadQueue:
    """A block that is larger than the bounds goes alone."""
    slice_blocks = max(1, SLICE_BYTES // block_bytes)
    return ReadQueue(
        max_blocks_in_flight=max(slice_blocks, MAX_BYTES_IN_FLIGHT // block_bytes),
        slice_blocks=slice_blocks,
    )
