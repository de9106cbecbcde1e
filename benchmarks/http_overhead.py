"""The delay that the HTTP side adds to a token, end to end, against uvicorn alone.

    python -m benchmarks.http_overhead --output-dir results

Four servers, one after another: plain FastAPI and pdray's own ingress, each under uvicorn
alone and through Ray Serve with its HAProxy. Every token is the time at which it was made; the
client, on the same machine and clock, subtracts it from the time of the read that brought it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.result_file import save_result
from benchmarks.sse import SseDecoder
from benchmarks.stamped_api import (
    MODEL,
    STAMP_DIGITS,
    STAMP_WRAPS_US,
    TOKENS_PER_STAMP,
    save_stamp_tokenizer,
    stamp_us,
)
from pdray.metrics.latency import Distribution
from pdray.serve.free_port import free_port

SERVERS = (("uvicorn", "plain"), ("serve", "plain"), ("uvicorn", "pdray"), ("serve", "pdray"))
BASELINE = SERVERS[0]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
# The first events pay for connections and cold caches.
WARMUP_STAMPS = 20

Results = dict[tuple[str, str], dict[int, Distribution]]


def delays_us(text: str, now_us: int) -> list[int]:
    """How old each stamp of an event's text is; a stamp's digits wrap."""
    found = [text[i : i + STAMP_DIGITS] for i in range(0, len(text), STAMP_DIGITS)]
    return [(now_us - int(stamp)) % STAMP_WRAPS_US for stamp in found]


async def read_stream(session: aiohttp.ClientSession, url: str, num_stamps: int) -> list[int]:
    """One stream's delays in microseconds. Raises ValueError where stamps are missing."""
    body = {
        "model": MODEL,
        "prompt": [1],
        "max_tokens": (num_stamps + WARMUP_STAMPS) * TOKENS_PER_STAMP,
        "stream": True,
    }
    delays: list[int] = []
    decoder = SseDecoder()
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            now_us = stamp_us()
            for data in decoder.feed(piece):
                if data != "[DONE]":
                    delays += delays_us(json.loads(data)["choices"][0]["text"], now_us)
    if len(delays) != num_stamps + WARMUP_STAMPS:
        raise ValueError(f"{url}: {len(delays)} stamps came, not {num_stamps + WARMUP_STAMPS}")
    return delays[WARMUP_STAMPS:]


async def measure(url: str, num_streams: int, num_stamps: int, interval_s: float) -> Distribution:
    """Delays in seconds over all streams, begun evenly over one interval."""

    async def one(index: int) -> list[int]:
        await asyncio.sleep(interval_s * index / num_streams)
        return await read_stream(session, url, num_stamps)

    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        streams = await asyncio.gather(*(one(index) for index in range(num_streams)))
    found = Distribution.of(delay / 1e6 for delays in streams for delay in delays)
    assert found is not None, "a run without stamps"
    return found


@contextmanager
def running_server(host: str, kind: str, interval_s: float, folder: Path) -> Iterator[str]:
    """Yields the URL of a server that answers; stops it in the end. Raises RuntimeError."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "benchmarks.stamped_server", host, kind]
    with (folder / "server.log").open("w+b") as log:
        server = subprocess.Popen(
            [*command, str(port), str(interval_s), str(folder)], stdout=log, stderr=log
        )
        try:
            asyncio.run(wait_until_up(url, server))
            yield url
        except (RuntimeError, aiohttp.ClientError) as error:
            log.seek(0)
            raise RuntimeError(f"{error}\n{log.read().decode(errors='replace')}") from error
        finally:
            server.terminate()
            server.wait(STOP_TIMEOUT_S)


async def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < give_up_at:
            if server.poll() is not None:
                raise RuntimeError(f"the server exited with {server.returncode}")
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # not yet listening
            await asyncio.sleep(0.2)
    raise RuntimeError(f"{url} did not come up within {START_TIMEOUT_S:.0f} s")


def run_all(arguments: argparse.Namespace, console: Console) -> Results:
    results: Results = {}
    for host, kind in SERVERS:
        with tempfile.TemporaryDirectory(prefix="stamped-") as name:
            save_stamp_tokenizer(Path(name))
            console.print(f"starting {kind} under {host}")
            with running_server(host, kind, arguments.interval, Path(name)) as url:
                results[host, kind] = {
                    num_streams: asyncio.run(
                        measure(url, num_streams, arguments.num_events, arguments.interval)
                    )
                    for num_streams in arguments.streams
                }
    return results


def print_results(results: Results, console: Console) -> None:
    table = Table(title="Delay of a token, from its making to its client, ms")
    for column in ("server", "streams", "P50", "P99", "max", "P50 ratio", "P99 ratio"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for (host, kind), by_streams in results.items():
        for num_streams, found in by_streams.items():
            base = results[BASELINE][num_streams]
            table.add_row(
                f"{kind} under {host}",
                str(num_streams),
                *(f"{1000 * seconds:.2f}" for seconds in (found.p50, found.p99, found.max)),
                f"{found.p50 / base.p50:.2f}",
                f"{found.p99 / base.p99:.2f}",
            )
    console.print(table)


def save_results(results: Results, arguments: argparse.Namespace) -> Path:
    rows = [
        {"host": host, "kind": kind, "num_streams": num_streams, "delay_s": asdict(found)}
        for (host, kind), by_streams in results.items()
        for num_streams, found in by_streams.items()
    ]
    return save_result("http-overhead", arguments, results=rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--num-events", type=int, default=500, help="of each stream")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between events")
    parser.add_argument("--output-dir", type=Path, help="for the JSON; default: none is written")
    arguments = parser.parse_args(argv)
    console = Console()
    results = run_all(arguments, console)
    print_results(results, console)
    if arguments.output_dir is not None:
        console.print(f"wrote {save_results(results, arguments)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
