"""``pdray serve`` in a process of its own, for tests that use it as a user does."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 90.0


class Served:
    """A ``pdray serve`` process, its output, and every process below it that was ever seen."""

    def __init__(self, config_path: Path, *options: str) -> None:
        self.port = yaml.safe_load(config_path.read_text())["serve"]["port"]
        self.log_path = config_path.with_suffix(".log")
        self._log = self.log_path.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pdray", "serve", str(config_path), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # a Ctrl-C in the test's terminal is not for it
        )
        self.descendants: dict[int, str] = {}

    def wait_for_line(self, words: str) -> None:
        """Returns when the log has the words."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while words not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)
        self.look_at_processes()

    def ready_line(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("pdray is ready"):
                self.look_at_processes()
                return line
        raise AssertionError(self.log)

    def look_at_processes(self) -> None:
        """Remembers what runs below now, by id and start time, as ids are used again."""
        parents = {pid: parent for pid, (parent, _) in processes().items()}
        starts = {pid: start for pid, (_, start) in processes().items()}
        for pid in parents:
            above = pid
            while above in parents and above != self.process.pid:
                above = parents[above]
            if above == self.process.pid and pid != above and pid in starts:
                self.descendants[pid] = starts[pid]

    def left_over(self) -> list[int]:
        now = {pid: start for pid, (_, start) in processes().items()}
        return [pid for pid, start in self.descendants.items() if now.get(pid) == start]

    def stop(self, signal_number: int) -> int:
        self.look_at_processes()
        self.process.send_signal(signal_number)
        return self.process.wait(STOP_TIMEOUT_S)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
            self.process.kill()
            self.process.wait()
        self._log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def processes() -> dict[int, tuple[int, str]]:
    """(parent, start time) of each process that is not a zombie."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(folder.name)] = (int(fields[1]), fields[19])
    return found


@contextlib.contextmanager
def served(config_path: Path, *options: str) -> Iterator[Served]:
    server = Served(config_path, *options)
    try:
        yield server
    finally:
        server.close()
