"""Lines that tell what a long step is doing: plain text, so that a log file reads well too."""

from __future__ import annotations

import sys
import time


class Progress:
    """Call it with a line; it goes to stderr with the seconds since the start."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()

    def __call__(self, text: str) -> None:
        seconds = time.monotonic() - self._started_at
        print(f"[{seconds:5.1f} s] {text}", file=sys.stderr, flush=True)
