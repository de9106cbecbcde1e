"""How fast requests are placed through the controller actor, by ingresses in their own processes.

python -m benchmarks.placement_actor
python -m benchmarks.placement_actor --workers 1000 --ingresses 4 --batch 32

The actor is the real one, with workers that are only told to it. Every ingress asks for a batch of
requests in one call and reports those of an earlier batch as ended, as frontends do.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

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
from benchmarks.result_file import save_result
from pdray.cluster.controller import ControllerActor
from pdray.cluster.rounds import Round, pack_round, unpack_answers
from pdray.config import PdrayConfig, parse_config
from pdray.core.placement import Placement

_NUM_ASKS = 1000
_MAX_CALLS = 2
"""Of one ingress at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The CPU's time is that of all threads of the controller's process, and of the ingresses', for
    each decision: other work of the machine makes decisions fewer, and leaves it as it is."""

    decisions_per_s: float
    call_p50_ms: float
    call_p99_ms: float
    controller_cpu_us: float
    ingress_cpu_us: float
    num_decisions: int
    num_not_placed: int


class FilledController(ControllerActor):
    """With workers that nobody made: stale after 10 s, so that a run must be shorter."""

    async def fill(self, num_workers: int, num_blocks: int) -> None:
        rng, now = random.Random(1), self._clock.now()
        ids = worker_ids(num_workers)
        for worker_id in ids:
            self._control.worker_joined(info_of(worker_id), now)
        for worker_id, report in prefix_reports(ids, num_blocks // PREFIX_BLOCKS):
            assert self._control.prefixes_told(worker_id, report, now)
        now = self._clock.now()
        for worker_id in ids:
            self._control.snapshot(snapshot_of(worker_id, now, rng), now)

    async def cpu_s(self) -> float:
        return time.process_time()


class Ingress:
    def __init__(self, frontend_id: str, controller: Any, num_blocks: int) -> None:
        self._frontend_id = frontend_id
        self._controller = controller
        rng = random.Random(frontend_id)
        self._asks = next_turns(_NUM_ASKS, max(num_blocks // PREFIX_BLOCKS, 1), rng)
        self._num_asked = 0

    async def run(self, seconds: float, batch: int, kept: int) -> tuple[list[float], int, int]:
        """Seconds of every call of ``place``, and how many requests were placed and were not. So
        many batches are left in flight."""
        until = time.perf_counter() + seconds
        placed: deque[tuple[str, ...]] = deque()
        took_s: list[float] = []
        counts = [0, 0]

        async def call_on() -> None:
            while time.perf_counter() < until:
                asks = tuple(self._next_ask() for _ in range(batch))
                ended = placed.popleft() if len(placed) > kept else ()
                started_at = time.perf_counter()
                told = pack_round(Round(ended=ended, asks=asks))
                packed = await self._controller.exchange.remote(self._frontend_id, told)
                answers = unpack_answers(packed, asks)
                took_s.append(time.perf_counter() - started_at)
                num_placed = sum(isinstance(answer, Placement) for answer in answers)
                counts[0] += num_placed
                counts[1] += len(answers) - num_placed
                placed.append(tuple(ask.request_id for ask in asks))

        await asyncio.gather(*(call_on() for _ in range(_MAX_CALLS)))
        return took_s, counts[0], counts[1]

    def cpu_s(self) -> float:
        return time.process_time()

    def _next_ask(self) -> Any:
        self._num_asked += 1
        ask = self._asks[self._num_asked % _NUM_ASKS]
        return replace(ask, request_id=f"{self._frontend_id}-{self._num_asked}")


def config_of(policy: str) -> PdrayConfig:
    """Of workers for which there is no node."""
    pool = {"node_groups": ["nowhere"], "engine": {"kv_cache_bytes": "1MiB"}}
    return parse_config(
        {
            "model": "demo",
            "node_groups": {"nowhere": {"resource": "nowhere"}},
            "pools": {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}},
            "controller": {"placement": policy},
            "serve": {"application": "placement-benchmark"},
        }
    )


def measure(arguments: argparse.Namespace) -> Finding:
    controller: Any = (
        ray.remote(FilledController)
        .options(num_cpus=0, max_concurrency=1000)
        .remote(config_of(arguments.policy), time.time())
    )
    ingresses: list[Any] = [
        ray.remote(Ingress).options(num_cpus=0).remote(f"f{number}", controller, arguments.blocks)
        for number in range(arguments.ingresses)
    ]
    ray.get([ingress.run.remote(0.0, 1, 1) for ingress in ingresses])  # they are up
    ray.get(controller.fill.remote(arguments.workers, arguments.blocks))
    room = arguments.workers * BATCH_SIZE // 4
    kept = max(room // (arguments.ingresses * arguments.batch), 1)

    def spent() -> tuple[float, float]:
        return ray.get(controller.cpu_s.remote()), sum(
            ray.get([i.cpu_s.remote() for i in ingresses])
        )

    cpu_s = spent()
    runs = [each.run.remote(arguments.seconds, arguments.batch, kept) for each in ingresses]
    found = ray.get(runs)
    controller_s, ingress_s = (after - before for before, after in zip(cpu_s, spent(), strict=True))
    took_s = sorted(each for took, _, _ in found for each in took)
    num_placed = sum(placed for _, placed, _ in found)
    return Finding(
        decisions_per_s=num_placed / arguments.seconds,
        call_p50_ms=1e3 * took_s[len(took_s) // 2],
        call_p99_ms=1e3 * took_s[int(len(took_s) * 0.99)],
        controller_cpu_us=1e6 * controller_s / num_placed,
        ingress_cpu_us=1e6 * ingress_s / num_placed,
        num_decisions=num_placed,
        num_not_placed=sum(not_placed for _, _, not_placed in found),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.placement_actor", description=__doc__)
    add = parser.add_argument
    add("--policy", default="cost")
    add("--workers", type=int, default=100)
    add("--blocks", type=int, default=100_000, help="in all workers' prefix caches")
    add("--ingresses", type=int, default=3)
    add("--batch", type=int, default=16, help="requests in a call")
    add("--seconds", type=float, default=5.0)
    add("--output-dir", type=Path)
    arguments = parser.parse_args(argv)
    if not 0.0 < arguments.seconds <= 8.0:
        parser.error(
            f"--seconds {arguments.seconds:g}: above 0, at most 8 (workers are stale then)"
        )
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        finding = measure(arguments)
    finally:
        ray.shutdown()
    Console().print(
        f"{cpu_name()}, {arguments.policy}, {arguments.workers:,} workers, "
        f"{arguments.ingresses} ingresses, {arguments.batch} requests a call: "
        f"{finding.decisions_per_s:,.0f} decisions/s; a call takes {finding.call_p50_ms:.1f} ms "
        f"(P50), {finding.call_p99_ms:.1f} ms (P99); a decision takes "
        f"{finding.controller_cpu_us:.0f} µs of a core in the controller and "
        f"{finding.ingress_cpu_us:.0f} µs in an ingress; {finding.num_not_placed} not placed"
    )
    if arguments.output_dir is not None:
        save_result("placement-actor", arguments, finding=asdict(finding))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
