"""A server that nobody uses: how long it takes to start, how much CPU it burns, and whether it
leaves nothing behind.

    python -m benchmarks.idle --config configs/demo.yaml --seconds 60

The first start may prepare the model and warms the file cache; the last one is the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.processes import MARK, Process, cores_by_kind, marked_processes
from benchmarks.result_file import save_result

STOP_TIMEOUT_S = 90.0
GONE_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One server, from start to end. ``cores`` are CPU seconds per second, by kind of process;
    ``left_behind`` are processes that outlived it."""

    startup_s: float
    cores: Mapping[str, float]
    num_processes: int
    stop_s: float
    exit_code: int
    left_behind: tuple[str, ...]


async def wait_for_health(url: str, server: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Raises ValueError where the server ends or the time does."""
    give_up_at = time.monotonic() + timeout_s
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < give_up_at:
            if server.poll() is not None:
                raise ValueError(f"the server ended with {server.returncode} before it was up")
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # not yet listening
            await asyncio.sleep(0.1)
    raise ValueError(f"{url} was not 200 within {timeout_s:.0f} s")


def stop(server: subprocess.Popen[bytes], mark: str) -> tuple[float, tuple[str, ...]]:
    """Ctrl-C, then the seconds until it ended, and who was left. Those are ended too."""
    began_at = time.monotonic()
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    stop_s = time.monotonic() - began_at
    left = wait_until_gone(mark)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return stop_s, tuple(f"{process.kind} ({process.pid})" for process in left)


def wait_until_gone(mark: str) -> list[Process]:
    give_up_at = time.monotonic() + GONE_TIMEOUT_S
    while (left := marked_processes(mark)) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    return left


def live_once(arguments: argparse.Namespace, log: IO[bytes]) -> Life:
    """Starts a server, watches it do nothing, and stops it."""
    mark = uuid.uuid4().hex
    command = [*arguments.command.split(), str(arguments.config), "--port", str(arguments.port)]
    began_at = time.monotonic()
    server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: mark})
    try:
        url = f"http://127.0.0.1:{arguments.port}/health"
        asyncio.run(wait_for_health(url, server, arguments.timeout))
        startup_s = time.monotonic() - began_at
        time.sleep(arguments.settle)
        before, before_at = marked_processes(mark), time.monotonic()
        time.sleep(arguments.seconds)
        after, after_at = marked_processes(mark), time.monotonic()
    finally:
        stop_s, left_behind = stop(server, mark)
    return Life(
        startup_s=startup_s,
        cores=cores_by_kind(before, after, after_at - before_at),
        num_processes=len(after),
        stop_s=stop_s,
        exit_code=server.returncode,
        left_behind=left_behind,
    )


def print_lives(lives: Sequence[Life], console: Console) -> None:
    table = Table(title="Idle CPU of the last server, by kind of process")
    table.add_column("process")
    table.add_column("% of one core", justify="right")
    for kind, cores in lives[-1].cores.items():
        table.add_row(kind, f"{cores:.2%}")
    table.add_row("all", f"{sum(lives[-1].cores.values()):.2%}", style="bold")
    console.print(table)
    for number, life in enumerate(lives, start=1):
        console.print(
            f"start {number}: up after {life.startup_s:.1f} s, {life.num_processes} processes,"
            f" stopped in {life.stop_s:.1f} s with {life.exit_code}"
        )
        if life.left_behind:
            console.print(f"left behind: {', '.join(life.left_behind)}", style="red")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/demo.yaml"))
    add("--port", type=int, default=8000)
    add("--command", default=f"{sys.executable} -m pdray serve", help="config and port follow")
    add("--starts", type=int, default=2, help="servers, one after another")
    add("--seconds", type=float, default=60.0, help="of watching each")
    add("--settle", type=float, default=10.0, help="seconds after the start that do not count")
    add("--timeout", type=float, default=600.0, help="seconds for a start")
    add("--output-dir", type=Path, help="for the JSON; default: none is written")
    arguments = parser.parse_args(argv)
    console = Console()
    with tempfile.NamedTemporaryFile(prefix="pdray-idle-", suffix=".log") as log:
        try:
            lives = [live_once(arguments, log.file) for _ in range(arguments.starts)]
        except ValueError as error:
            console.print(Path(log.name).read_text(errors="replace")[-4000:], markup=False)
            console.print(f"error: {error}", style="red", markup=False)
            return 2
    print_lives(lives, console)
    if arguments.output_dir is not None:
        found = [asdict(life) for life in lives]
        path = save_result("idle", arguments, lives=found)
        console.print(f"wrote {path}", highlight=False)
    return 1 if any(life.left_behind for life in lives) else 0


if __name__ == "__main__":
    sys.exit(main())
