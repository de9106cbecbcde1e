"""A real worker in a process of its own, without Ray: to be killed, stopped and cut off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from pdray.core.snapshot import WorkerInfo, WorkerSnapshot
from pdray.engine.outputs import StepOutput
from pdray.worker.config import WorkerConfig
from pdray.worker.worker import Worker, build_worker

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 120.0
SNAPSHOT_S = 0.05
DRAIN_S = 60.0
"""After SIGTERM, for which it drains."""
STEP_PAUSE = "PDRAY_TEST_STEP_PAUSE_S"
"""In a worker's environment: how much longer each of its steps takes."""


class WorkerProcess:
    """``command`` goes before the interpreter's own: what puts it elsewhere on the machine."""

    def __init__(
        self,
        config: WorkerConfig,
        log_path: Path,
        *,
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self._pipe, theirs = Pipe()
        self._latest: WorkerSnapshot | None = None
        with log_path.open("a") as log:
            self._process = subprocess.Popen(
                [*command, sys.executable, "-m", "tests.worker_process", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"} | dict(env or {}),
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._pipe.send(config)
        self.info: WorkerInfo | None = None

    def wait_until_ready(self) -> WorkerInfo:
        assert self._pipe.poll(START_TIMEOUT_S), f"{self.config.worker_id} is not ready"
        info = self._pipe.recv()
        assert isinstance(info, WorkerInfo)
        self.info = info
        return info

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def take_snapshots(self) -> list[WorkerSnapshot]:
        """Those that it has sent since the last call."""
        snapshots: list[WorkerSnapshot] = []
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(0):
                snapshots.append(self._pipe.recv())
        return snapshots

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._pipe.close()


def _slow_down(worker: Worker, pause_s: float) -> None:
    step = worker.engine.step

    def slow_step() -> StepOutput:
        time.sleep(pause_s)
        return step()

    worker.engine.step = slow_step  # type: ignore[method-assign]


async def _run(pipe: Connection) -> None:
    config = pipe.recv()
    assert isinstance(config, WorkerConfig)
    worker = build_worker(config)
    _slow_down(worker, float(os.environ.get(STEP_PAUSE, "0")))
    pipe.send(await worker.start())
    crashed = asyncio.create_task(worker.crashed())
    is_told_to_end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_told_to_end.set)
    leaving: asyncio.Task[bool] | None = None
    while not crashed.done():
        if is_told_to_end.is_set() and leaving is None:
            leaving = asyncio.create_task(worker.drain(DRAIN_S, gives_back=True))
        if leaving is not None and leaving.done():
            assert leaving.result(), "it could not be left in time"
            await worker.stop()
            return
        worker.engine.pool.check_integrity()
        pipe.send(worker.snapshot())
        await asyncio.sleep(SNAPSHOT_S)
    raise crashed.result()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with contextlib.suppress(BrokenPipeError):  # the test that started it is over
        asyncio.run(_run(Connection(int(sys.argv[1]))))
