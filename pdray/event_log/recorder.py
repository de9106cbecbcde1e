"""Writes what a control plane is told, and what it decides, while it runs: a thread does, so that
no disk keeps a request waiting."""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from pdray.control.controller import ControlPlane
from pdray.control.journal import Told

from .entry import encode
from .segments import header_of, segment_path, segments

logger = logging.getLogger(__name__)

_SEGMENTS_KEPT = 8
_MAX_UNWRITTEN = 100_000
_CLOSE_S = 5.0


class Recorder:
    """The log of ``control`` from here on, in files of ``folder``. All that is there of this
    ``name``, of other lives too, takes ``max_bytes`` at most.

    A log that cannot be written ends with an error in the process's own log; the control plane
    goes on. ``unix_time`` gives seconds since 1970.
    """

    def __init__(
        self,
        control: ControlPlane,
        folder: Path,
        name: str,
        *,
        life: str,
        max_bytes: int,
        unix_time: Callable[[], float],
    ) -> None:
        """Raises OSError where the folder cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._control = control
        self._writer = _Writer(folder, name, max_bytes)
        self._max_bytes = max_bytes
        self._segment_bytes = max_bytes // _SEGMENTS_KEPT
        self._unix_time = unix_time
        self._path = functools.partial(segment_path, folder, name, life)
        self._number = 0
        self._entry_bytes = 0
        self._begin_segment()
        control.journal = self._note

    def close(self) -> None:
        """Returns when all is written."""
        self._control.journal = None
        self._writer.close()

    def _note(self, told: Told) -> None:
        if self._writer.has_failed:
            self._control.journal = None
            return
        line = encode(told)
        self._writer.write(line)
        self._entry_bytes += len(line) + 1
        if self._entry_bytes >= self._segment_bytes:
            self._begin_segment()

    def _begin_segment(self) -> None:
        header = header_of(self._control, self._unix_time())
        if len(header) > self._max_bytes // 2:
            self._writer.fail(
                f"what the controller knows takes {len(header)} bytes, more than half of max_bytes"
            )
            return
        self._writer.open(self._path(self._number), header)
        self._number += 1
        self._entry_bytes = 0


class _Writer:
    def __init__(self, folder: Path, name: str, max_bytes: int) -> None:
        self._folder = folder
        self._name = name
        self._max_bytes = max_bytes
        self._lines: queue.Queue[tuple[Path | None, bytes] | None] = queue.Queue(_MAX_UNWRITTEN)
        self.has_failed = False
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def open(self, path: Path, header: bytes) -> None:
        self._put((path, header))

    def write(self, line: bytes) -> None:
        self._put((None, line))

    def close(self) -> None:
        self._put(None)
        self._thread.join(_CLOSE_S)

    def _put(self, item: tuple[Path | None, bytes] | None) -> None:
        try:
            self._lines.put_nowait(item)
        except queue.Full:
            self.fail(f"{_MAX_UNWRITTEN} events are not written yet")

    def _run(self) -> None:
        try:
            self._write_all()
        except OSError as error:
            self.fail(str(error))

    def _write_all(self) -> None:
        file = None
        try:
            while (item := self._lines.get()) is not None:
                path, line = item
                if path is not None:
                    if file is not None:
                        file.close()
                    self._make_room(len(line))
                    file = path.open("wb")
                assert file is not None, "a segment is opened first"
                file.write(line + b"\n")
                if self._lines.empty():
                    file.flush()
        finally:
            if file is not None:
                file.close()

    def _make_room(self, header_bytes: int) -> None:
        """For a segment that begins with so much."""
        kept = segments(self._folder, self._name)
        room = self._max_bytes - header_bytes - self._max_bytes // _SEGMENTS_KEPT
        num_bytes = sum(path.stat().st_size for path in kept)
        for path in kept:
            if num_bytes <= room:
                break
            num_bytes -= path.stat().st_size
            path.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        if not self.has_failed:
            self.has_failed = True
            logger.error("the event log in %s ends here: %s", self._folder, reason)
