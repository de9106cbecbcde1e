"""How fast KV blocks get from one process to another, and what that costs of the cores.

    python -m benchmarks.transfer --ways pdray nixl nixl-push memcpy ray --ucx-tls default tcp,self

pdray's own way is a pull through its transfer threads, as workers make it; ``nixl`` is the same
descriptors with NIXL's calls alone, both sides polling without a pause: the limit; ``nixl-push``
writes them instead of reading. Sizes are in
blocks of Gemma 3 270M's (98,304 bytes); a pull of 32 of them is a prompt of 128 to 512 tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.result_file import save_result
from benchmarks.transfer_peers import Arena, Way, memcpy_way, nixl_way, pdray_way, push_way, ray_way

WAYS: dict[str, Callable[[Arena], AbstractContextManager[Way]]] = {
    "pdray": pdray_way,
    "nixl": nixl_way,
    "nixl-push": push_way,
    "memcpy": memcpy_way,
    "ray": ray_way,
}
HAS_UCX = ("pdray", "nixl", "nixl-push")
"""The others are measured once, whatever UCX may use."""
BLOCK_BYTES = 98_304


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One way and size. ``cpu_s_per_gb`` is of both processes together."""

    way: str
    ucx_tls: str
    num_blocks: int
    num_bytes: int
    p50_s: float
    p99_s: float
    bytes_per_s: float
    cpu_s_per_gb: float


def measure(way_name: str, arena: Arena, arguments: argparse.Namespace) -> list[Finding]:
    """Raises ValueError where bytes do not arrive as they were."""
    if arena.ucx_tls is not None:
        os.environ["UCX_TLS"] = arena.ucx_tls
    findings = []
    with WAYS[way_name](arena) as way:
        for num_blocks in arguments.num_blocks:
            rng = random.Random(arguments.seed)
            block_ids = [rng.sample(range(arena.num_blocks), num_blocks) for _ in range(64)]
            way.check(block_ids[0])  # a first read, which may have to make a connection, too
            findings.append(time_reads(way_name, way, arena, block_ids, arguments.seconds))
    return findings


def time_reads(
    way_name: str, way: Way, arena: Arena, block_ids: Sequence[Sequence[int]], seconds: float
) -> Finding:
    times_s: list[float] = []
    cpu_started_s = time.process_time() + way.owner_cpu_s()
    give_up_at = time.perf_counter() + seconds
    while len(times_s) < 5 or time.perf_counter() < give_up_at:
        wanted = block_ids[len(times_s) % len(block_ids)]
        started_at = time.perf_counter()
        way.read(wanted)
        times_s.append(time.perf_counter() - started_at)
    cpu_s = time.process_time() + way.owner_cpu_s() - cpu_started_s
    num_bytes = len(block_ids[0]) * arena.block_bytes
    times_s.sort()
    return Finding(
        way=way_name,
        ucx_tls=(arena.ucx_tls or "default") if way_name in HAS_UCX else "-",
        num_blocks=len(block_ids[0]),
        num_bytes=num_bytes,
        p50_s=statistics.median(times_s),
        p99_s=times_s[min(len(times_s) - 1, int(0.99 * len(times_s)))],
        bytes_per_s=num_bytes * len(times_s) / sum(times_s),
        cpu_s_per_gb=cpu_s / (num_bytes * len(times_s) / 1e9),
    )


def measure_all(arguments: argparse.Namespace, console: Console) -> list[Finding]:
    findings: list[Finding] = []
    for ucx_tls in arguments.ucx_tls:
        arena = Arena(
            num_blocks=2 * max(arguments.num_blocks),
            block_bytes=arguments.block_bytes,
            ucx_tls=None if ucx_tls == "default" else ucx_tls,
        )
        for way_name in arguments.ways:
            if way_name in HAS_UCX or ucx_tls == arguments.ucx_tls[0]:
                console.print(f"measuring {way_name}, UCX_TLS={ucx_tls}", style="dim")
                findings += in_a_process(way_name, arena, arguments)
    return findings


def in_a_process(way_name: str, arena: Arena, arguments: argparse.Namespace) -> list[Finding]:
    """UCX reads its settings once in a process, so each way gets one of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, way_name, arena, arguments).result()


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    limits = {(f.ucx_tls, f.num_blocks): f for f in findings if f.way == "nixl"}
    table = Table(title="KV blocks from one process to another")
    for column in ("UCX_TLS", "way"):
        table.add_column(column, no_wrap=True)
    for column in ("blocks", "MB", "P50 ms", "P99 ms", "GB/s", "CPU s/GB", "of NIXL's"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in findings:
        limit = limits.get((found.ucx_tls, found.num_blocks))
        table.add_row(
            found.ucx_tls,
            found.way,
            str(found.num_blocks),
            f"{found.num_bytes / 1e6:.2f}",
            f"{1000 * found.p50_s:.3f}",
            f"{1000 * found.p99_s:.3f}",
            f"{found.bytes_per_s / 1e9:.2f}",
            f"{found.cpu_s_per_gb:.2f}",
            "-" if limit is None else f"{found.bytes_per_s / limit.bytes_per_s:.0%}",
        )
    console.print(table)
    machine = describe_machine()
    console.print(f"{machine.cpu}, {machine.num_cores} cores", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--ucx-tls", nargs="+", default=["default", "tcp,self"])
    add("--num-blocks", type=int, nargs="+", default=[1, 8, 32, 128, 512])
    add("--block-bytes", type=int, default=BLOCK_BYTES)
    add("--seconds", type=float, default=2.0, help="for each way and size")
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, help="for the JSON; default: none is written")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        findings = measure_all(arguments, console)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    print_findings(findings, console)
    if arguments.output_dir is not None:
        found = [asdict(each) for each in findings]
        path = save_result("transfer", arguments, findings=found)
        console.print(f"wrote {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
