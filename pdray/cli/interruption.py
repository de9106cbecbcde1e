"""Ctrl-C and SIGTERM, counted: the first asks for an orderly end, the second for one at once."""

from __future__ import annotations

import signal
import time
from types import FrameType

from pdray.cli.progress import Progress

_POLL_S = 1.0


class Interruption:
    """Raises KeyboardInterrupt in the main thread at each signal, and remembers that it has.

    The memory is needed: libraries catch a KeyboardInterrupt or turn it into an error of theirs.
    """

    def __init__(self, say: Progress) -> None:
        self._say = say
        self.count = 0

    def take_signals(self) -> None:
        """Call it again where a library has taken a signal for itself (Ray takes SIGTERM); Ctrl-C
        is taken also where a shell had it ignored."""
        signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)

    def ignore_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def wait(self) -> None:
        """Returns once there has been a signal, or lets its KeyboardInterrupt through."""
        while self.count == 0:
            time.sleep(_POLL_S)

    def _interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._say("stopping (Ctrl-C again: at once)" if self.count == 1 else "stopping at once")
        raise KeyboardInterrupt
