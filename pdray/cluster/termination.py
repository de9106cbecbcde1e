"""SIGTERM of an actor's process, which Ray would answer by ending it at once."""

from __future__ import annotations

import asyncio
import signal
import types
from collections.abc import Callable


class Termination:
    """Takes the signal from when it is made, which has to be in the process's main thread."""

    def __init__(self) -> None:
        self._has_come = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._call: Callable[[], None] | None = None
        signal.signal(signal.SIGTERM, self._on_signal)

    def tell(self, call: Callable[[], None]) -> None:
        """Has ``call`` run on this loop with every signal, and at once where one has come."""
        self._loop, self._call = asyncio.get_running_loop(), call
        if self._has_come:
            call()

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        self._has_come = True
        if self._loop is not None and self._call is not None:
            self._loop.call_soon_threadsafe(self._call)
