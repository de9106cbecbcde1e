"""The thread that owns the disk tier, and makes the copies that nobody should wait for."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pdray.core.errors import TransferError
from pdray.kvcache.tiers.disk import DiskTier
from pdray.kvcache.tiers.tiers import Tiers

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TierThread:
    """Jobs for prompts that wait come first, then other jobs, then what should be on disk. Any
    thread may call."""

    def __init__(self, tiers: Tiers, open_disk: Callable[[], DiskTier] | None) -> None:
        """``open_disk`` is called in the thread, the disk's owner."""
        self._tiers = tiers
        self._open_disk = open_disk
        self._thread = threading.Thread(target=self._run, name="pdray-tiers", daemon=True)
        self._started: Future[None] = Future()
        self._changed = threading.Condition()
        self._urgent: deque[Callable[[], None]] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._may_have_writes = True
        self._is_stopping = False

    def start(self) -> None:
        """Returns once the disk tier is open. Raises what opening it raised."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Ends after the job that runs; those that wait fail. May be called twice."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Callable[[], T], *, is_urgent: bool) -> Future[T]:
        """Its future cannot be cancelled, and fails with TransferError where the thread ends
        first."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                if self._is_stopping:
                    raise TransferError("the tiers have stopped")
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
                raise

        with self._changed:
            is_late = self._is_stopping
            if not is_late:
                (self._urgent if is_urgent else self._jobs).append(run)
                self._changed.notify()
        if is_late:
            future.set_exception(TransferError("the tiers have stopped"))
        return future

    def wake(self) -> None:
        """There may be something to be written."""
        with self._changed:
            self._may_have_writes = True
            self._changed.notify()

    def _run(self) -> None:
        disk: DiskTier | None = None
        try:
            if self._open_disk is not None:
                disk = self._open_disk()
                self._tiers.open_disk(disk)
        except Exception as error:  # the thread's outermost level: `start` raises it
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        try:
            while (job := self._next_job()) is not None:
                job()
        except Exception:  # the thread's outermost level
            logger.exception("the tiers failed: no KV goes to them or comes from them any more")
        self._end()
        if disk is not None:
            disk.close()

    def _next_job(self) -> Callable[[], None] | None:
        """None when the thread is to end."""
        with self._changed:
            while not (self._is_stopping or self._urgent or self._jobs or self._may_have_writes):
                self._changed.wait()
            if self._is_stopping:
                return None
            if self._urgent or self._jobs:
                return (self._urgent or self._jobs).popleft()
            self._may_have_writes = False
        return self._write_next

    def _write_next(self) -> None:
        if self._write():
            self.wake()

    def write_all(self) -> None:
        """All that should be on disk, if it can be; for jobs."""
        while self._write():
            pass

    def _write(self) -> bool:
        try:
            return self._tiers.write_some()
        except TransferError as error:
            logger.warning("disk tier: nothing is written for a while: %s", error)
            return False

    def _end(self) -> None:
        """Nobody waits for what will never be."""
        with self._changed:
            self._is_stopping = True
            waiting = [*self._urgent, *self._jobs]
        for job in waiting:
            with contextlib.suppress(TransferError):
                job()
