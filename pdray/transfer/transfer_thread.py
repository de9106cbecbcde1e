"""The one thread that owns a worker's transport, and how the rest of the process talks to it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from pdray.core.errors import TransferError
from pdray.transfer.base import TransferId, TransferState, Transport

logger = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.0005
"""Between polls while something moves; with UCX over TCP that moves some 1.6 GB/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """A read that has arrived. ``transfer_s`` is from its start until it was seen to be done."""

    num_blocks: int
    num_bytes: int
    transfer_s: float


@dataclass(frozen=True, slots=True)
class _Pull:
    peer_id: str
    num_blocks: int
    started_at: float
    future: Future[PullReport]


class TransferThread:
    """Owns a transport in a thread of its own; every method may be called from any thread.

    It polls while reads are pending or blocks are lent, and else sleeps without waking up.
    Its futures cannot be cancelled: a pull's ends when its read can touch memory no more.
    """

    def __init__(self, make_transport: Callable[[], Transport]) -> None:
        """``make_transport`` is called in the thread, which will be the transport's owner."""
        self._make_transport = make_transport
        self._thread = threading.Thread(target=self._run, name="pdray-transfer", daemon=True)
        self._description: Future[bytes] = Future()
        self._wake = threading.Condition()
        # Under the condition's lock; the pulls belong to the thread alone.
        self._commands: deque[Callable[[Transport], None]] = deque()
        self._unfinished: set[Future[None] | Future[PullReport]] = set()
        self._num_lending = 0
        self._drain_until: float | None = None
        self._closed_because: str | None = None
        self._pulls: dict[TransferId, _Pull] = {}

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

    def add_peer(self, peer_id: str, description: bytes) -> Future[None]:
        """Makes ``peer_id`` readable, or fails with TransferError."""
        future: Future[None] = Future()

        def run(transport: Transport) -> None:
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
        self, peer_id: str, remote_block_ids: Sequence[int], local_block_ids: Sequence[int]
    ) -> Future[PullReport]:
        """Copies remote block i into local block i. Fails with TransferError; the local blocks
        must stay untouched until the future has ended, however it does."""
        future: Future[PullReport] = Future()
        remote_ids, local_ids = tuple(remote_block_ids), tuple(local_block_ids)

        def run(transport: Transport) -> None:
            started_at = time.perf_counter()
            try:
                transfer_id = transport.pull(peer_id, remote_ids, local_ids)
            except TransferError as error:
                self._fail(future, error)
            else:
                self._pulls[transfer_id] = _Pull(peer_id, len(local_ids), started_at, future)

        self._submit(run, future)
        return future

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
        command: Callable[[Transport], None],
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
            self._description.set_result(transport.describe())
        except Exception as error:  # the thread's outermost level: `start` raises it
            self._end(f"the transport could not be made: {error!r}")
            self._description.set_exception(error)
            return
        reason = "the transfer thread was stopped"
        try:
            while self._wait_for_work():
                self._run_commands(transport)
                self._poll_pulls(transport)
                if self._num_lending:
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
            if not self._commands and (self._pulls or self._num_lending):
                self._wake.wait(POLL_INTERVAL_S)
            while True:
                has_work = bool(self._commands or self._pulls)
                if self._drain_until is not None:
                    return has_work and time.monotonic() < self._drain_until
                if has_work or self._num_lending:
                    return True
                self._wake.wait()

    def _run_commands(self, transport: Transport) -> None:
        while True:
            with self._wake:
                if not self._commands:
                    return
                command = self._commands.popleft()
            command(transport)

    def _poll_pulls(self, transport: Transport) -> None:
        for transfer_id, pull in list(self._pulls.items()):
            state = transport.poll(transfer_id)
            if state is TransferState.PENDING:
                continue
            del self._pulls[transfer_id]
            if state is TransferState.FAILED:
                error = f"a read of {pull.num_blocks} blocks of peer {pull.peer_id!r} failed"
                self._fail(pull.future, TransferError(error))
                continue
            report = PullReport(
                num_blocks=pull.num_blocks,
                num_bytes=pull.num_blocks * transport.block_bytes,
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
        for future in unfinished:
            self._fail(future, TransferError(reason))

    def _fail(self, future: Future[None] | Future[PullReport], error: TransferError) -> None:
        self._forget(future)
        future.set_exception(error)

    def _forget(self, future: Future[None] | Future[PullReport]) -> None:
        with self._wake:
            self._unfinished.discard(future)
