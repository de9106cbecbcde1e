"""How fast requests are placed, by how many workers there are: the pure control plane, on one core.

python -m benchmarks.placement
python -m benchmarks.placement --policies cost least_loaded --workers 100 1000 --blocks 100000
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpu_name
from benchmarks.placement_fleet import (
    BATCH_SIZE,
    PREFIX_BLOCKS,
    info_of,
    next_turns,
    prefix_reports,
    snapshot_of,
    worker_ids,
)
from benchmarks.process_memory import anonymous_bytes
from benchmarks.result_file import save_result
from pdray.control.controller import ControlConfig, ControlPlane
from pdray.core.placement import Placement, PlacementAsk
from pdray.core.slo import Slo
from pdray.policy.placement import PLACEMENT

NUM_ASKS = 4000
"""Different ones, which come again and again."""
SNAPSHOTS_PER_S = 4
_FRONTEND = "f"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One decision is a request placed and one, placed before, ended. ``snapshot_share`` is the
    part of a core that all workers' snapshots take, four a second from each. ``bytes_per_block``
    is what the process has grown by with the index."""

    policy: str
    num_workers: int
    num_decisions: int
    decisions_per_s: float
    p50_us: float
    p99_us: float
    max_us: float
    snapshot_us: float
    snapshot_share: float
    bytes_per_block: float


def make_control(policy: str, num_workers: int, num_blocks: int) -> ControlPlane:
    config = ControlConfig(
        max_queued_requests=0,
        queue_timeout_s=60.0,
        frontend_timeout_s=1e9,
        stale_after_s=1e9,
        max_known_blocks=max(num_blocks, 1),
    )
    slo = Slo(ttft_s=2.0, itl_s=0.1, percentile=0.99)
    control = ControlPlane(config, PLACEMENT.get(policy)(slo, random.Random(0)))
    rng = random.Random(1)
    for worker_id in worker_ids(num_workers):
        control.worker_joined(info_of(worker_id), 0.0)
        control.snapshot(snapshot_of(worker_id, 0.0, rng), 0.0)
    return control


def fill(control: ControlPlane, num_workers: int, num_blocks: int) -> float:
    """Tells it of so many blocks; by how many bytes the process grew for each."""
    before = anonymous_bytes()
    for worker_id, report in prefix_reports(worker_ids(num_workers), num_blocks // PREFIX_BLOCKS):
        assert control.prefixes_told(worker_id, report, 0.0)
    return (anonymous_bytes() - before) / max(num_blocks, 1)


def measure(policy: str, num_workers: int, num_blocks: int, seconds: float) -> Finding:
    """A quarter of what fits is in flight at any time, and snapshots come between decisions."""
    control = make_control(policy, num_workers, num_blocks)
    bytes_per_block = fill(control, num_workers, num_blocks)
    rng = random.Random(2)
    ids = worker_ids(num_workers)
    asks = next_turns(NUM_ASKS, max(num_blocks // PREFIX_BLOCKS, 1), rng)
    in_flight: deque[str] = deque()
    for number in range(num_workers * BATCH_SIZE // 4):
        ask = replace(asks[number % NUM_ASKS], request_id=f"first {number}")
        _place(control, ask.request_id, [ask], 0.0)
        in_flight.append(ask.request_id)
    took_s: list[float] = []
    snapshots_s: list[float] = []
    now, end_at = 1.0, time.perf_counter() + seconds
    while time.perf_counter() < end_at:
        number = len(took_s)
        ask = replace(asks[number % NUM_ASKS], request_id=f"r{number}")
        now += 1e-4
        started_at = time.perf_counter()
        _place(control, ask.request_id, [ask], now)
        control.finished(_FRONTEND, [in_flight.popleft()], now)
        took_s.append(time.perf_counter() - started_at)
        in_flight.append(ask.request_id)
        snapshot = snapshot_of(ids[number % num_workers], now, rng)
        started_at = time.perf_counter()
        control.snapshot(snapshot, now)
        snapshots_s.append(time.perf_counter() - started_at)
    ordered = sorted(took_s)
    snapshot_s = sum(snapshots_s) / len(snapshots_s)
    return Finding(
        policy=policy,
        num_workers=num_workers,
        num_decisions=len(took_s),
        decisions_per_s=len(took_s) / sum(took_s),
        p50_us=1e6 * ordered[len(ordered) // 2],
        p99_us=1e6 * ordered[int(len(ordered) * 0.99)],
        max_us=1e6 * ordered[-1],
        snapshot_us=1e6 * snapshot_s,
        snapshot_share=snapshot_s * num_workers * SNAPSHOTS_PER_S,
        bytes_per_block=bytes_per_block,
    )


def _place(
    control: ControlPlane, request_id: str, asks: Sequence[PlacementAsk], now: float
) -> None:
    (answer,) = control.place(_FRONTEND, asks, now)
    assert isinstance(answer, Placement), f"{request_id}: {answer}"


def show(console: Console, findings: Sequence[Finding]) -> None:
    table = Table("policy", "workers", "decisions/s", "P50 µs", "P99 µs", "max µs", "snapshot µs")
    table.add_column("snapshots' share of a core")
    for each in findings:
        table.add_row(
            each.policy,
            f"{each.num_workers:,}",
            f"{each.decisions_per_s:,.0f}",
            *(f"{value:,.0f}" for value in (each.p50_us, each.p99_us, each.max_us)),
            f"{each.snapshot_us:.1f}",
            f"{each.snapshot_share:.1%}",
        )
    console.print(table)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.placement", description=__doc__)
    add = parser.add_argument
    add("--policies", nargs="+", default=["cost"], choices=PLACEMENT.names())
    add("--workers", nargs="+", type=int, default=[10, 100, 1000, 10_000])
    add("--blocks", type=int, default=10_000_000, help="in all workers' prefix caches")
    add("--seconds", type=float, default=5.0, help="for each line")
    add("--output-dir", type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    console = Console()
    findings = []
    for num_workers in arguments.workers:
        for policy in arguments.policies:
            findings.append(measure(policy, num_workers, arguments.blocks, arguments.seconds))
    show(console, findings)
    # Later ones fill memory that the ones before have left.
    console.print(
        f"{cpu_name()}; an index of {arguments.blocks:,} blocks: "
        f"{findings[0].bytes_per_block:.0f} bytes a block"
    )
    if arguments.output_dir is not None:
        save_result("placement", arguments, findings=[asdict(each) for each in findings])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
