"""The thread that runs the engine: one step after another while there is work."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from pdray.engine.engine import Engine
from pdray.engine.outputs import StepOutput

logger = logging.getLogger(__name__)


class EngineThread:
    """Steps the engine, and gives each step's output to the event loop.

    An exception out of a step is a defect of ours, after which the engine's state can't be
    trusted: ``on_crash`` is told, and the thread ends.
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_step: Callable[[StepOutput], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._on_step = on_step
        self._on_crash = on_crash
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pdray-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the running step, if any, is done."""
        self._is_stopping.set()
        self._engine.wake()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                has_work = self._engine.wait_for_work(None)
                if self._is_stopping.is_set():
                    return
                if has_work:
                    output = self._engine.step()
                    self._loop.call_soon_threadsafe(self._on_step, output)
        except Exception as error:
            logger.exception("the engine crashed")
            self._loop.call_soon_threadsafe(self._on_crash, error)
