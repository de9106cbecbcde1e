"""How long a running decode is silent while it moves to another decode worker, beside what it is
made of: a decode step, and the transfer of the last blocks.

    python -m benchmarks.migration --model ~/.cache/pdray/models/gemma-3-270m-fp32-... \\
        --context-tokens 128 512 1024 2000

Workers share one process and its cores here; each figure is of this run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from pdray.config import PdrayConfig, parse_config
from pdray.core.errors import MigrationError
from pdray.core.request import Request, SamplingParams
from pdray.local import LocalCluster
from pdray.worker.worker import Worker


@dataclass(slots=True)
class Finding:
    """Of one context length, all in seconds. ``pauses`` are as the client saw them; ``gaps`` are
    between tokens while nothing moved, so of a decode step each; ``reads`` of the last blocks."""

    context_tokens: int
    pauses: list[float]
    gaps: list[float]
    reads: list[float]

    @property
    def target_s(self) -> float:
        """Two decode steps, and the last blocks."""
        return 2 * quantile(self.gaps, 0.5) + quantile(self.reads, 0.5)


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def make_config(model_path: Path, transport: str) -> PdrayConfig:
    engine = {
        "kv_cache_bytes": "512MiB",
        "max_tokens_per_step": 512,
        "max_batch_size": 8,
        "max_model_len": 4096,
        "num_threads": 1,
    }
    pool = {"node_groups": ["here"], "engine": engine}
    return parse_config(
        {
            "model": str(model_path),
            "node_groups": {"here": {}},
            "pools": {
                "prefill": {"role": "prefill", **pool},
                "decode": {"role": "decode", "replicas": 2, **pool},
            },
            "transfer": {"transport": transport},
        }
    )


def request_of(context_tokens: int, num_tokens: int, seed: int) -> Request:
    rng = random.Random(seed)
    sampling = SamplingParams(
        max_tokens=num_tokens,
        temperature=0.0,
        top_k=None,
        top_p=1.0,
        seed=seed,
        stop_token_ids=(),
        ignore_eos=True,
    )
    prompt = tuple(rng.randrange(1000, 50_000) for _ in range(context_tokens))
    return Request(
        request_id=f"{context_tokens}/{seed}",
        prompt_token_ids=prompt,
        output_token_ids=(),
        sampling=sampling,
        cache_salt=f"{context_tokens}/{seed}",
    )


class Pauses:
    """What the workers and the frontend measure, kept one by one where their metrics have
    buckets."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.seconds: list[float] = []
        self.reads: list[float] = []
        paused = cluster.frontend.metrics.migration_paused

        def on_paused(seconds: float) -> None:
            self.seconds.append(seconds)
            paused(seconds)

        cluster.frontend.metrics.migration_paused = on_paused  # type: ignore[method-assign]
        for worker in cluster.workers_of("decode"):
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        finished = worker.metrics.transfer_finished

        def on_finished(seconds: float, *, is_hidden: bool, **more: object) -> None:
            if not is_hidden:
                self.reads.append(seconds)
            finished(seconds, is_hidden=is_hidden, **more)  # type: ignore[arg-type]

        worker.metrics.transfer_finished = on_finished  # type: ignore[method-assign]


async def measure(
    cluster: LocalCluster, pauses: Pauses, request: Request, num_moves: int
) -> Finding:
    frontend, decodes = cluster.frontend, cluster.workers_of("decode")
    gaps: list[float] = []
    is_moving = False

    async def read() -> None:
        last: float | None = None
        async for delta in frontend.generate(request):
            now = time.perf_counter()
            if last is not None and not is_moving and len(delta.token_ids) == 1:
                gaps.append(now - last)
            last = now

    reading = asyncio.create_task(read())
    moved_to: list[Worker] = []
    while len(moved_to) < num_moves and not reading.done():
        await asyncio.sleep(0.3)
        sources = [
            worker
            for worker in decodes
            if request.request_id in frontend.decoding_at(worker.config.worker_id)
        ]
        if not sources:
            continue
        if not moved_to:
            pauses.seconds.clear()
            pauses.reads.clear()
        (target,) = (worker for worker in decodes if worker is not sources[0])
        is_moving = True
        try:
            await frontend.migrate(request.request_id, target.info().address)
        except MigrationError as error:
            raise SystemExit(f"a migration failed: {error}") from error
        await asyncio.sleep(0.1)
        is_moving = False
        moved_to.append(target)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return Finding(
        context_tokens=request.num_prompt_tokens,
        pauses=list(pauses.seconds),
        gaps=gaps,
        reads=list(pauses.reads),
    )


async def measure_all(arguments: argparse.Namespace) -> list[Finding]:
    config = make_config(arguments.model, arguments.transport)
    async with LocalCluster(config, arguments.model) as cluster:
        pauses = Pauses(cluster)
        await measure(cluster, pauses, request_of(64, 400, seed=0), 2)  # connections
        return [
            await measure(cluster, pauses, request_of(length, 2000, seed=1), arguments.num_moves)
            for length in arguments.context_tokens
        ]


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    machine = describe_machine()
    table = Table(title=f"Pause of a migration, ms; {machine.cpu}, {machine.num_cores} cores")
    for column in ("context", "moves", "P50", "max", "mean", "decode step", "last read"):
        table.add_column(column, justify="right")
    table.add_column("2 steps + read", justify="right")
    for each in findings:
        seconds = (
            quantile(each.pauses, 0.5),
            max(each.pauses),
            statistics.mean(each.pauses),
            quantile(each.gaps, 0.5),
            quantile(each.reads, 0.5),
            each.target_s,
        )
        table.add_row(
            str(each.context_tokens), str(len(each.pauses)), *(f"{1e3 * s:.1f}" for s in seconds)
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a model's folder")
    add("--context-tokens", type=int, nargs="+", default=[128, 512, 1024, 2000])
    add("--num-moves", type=int, default=20, help="of each length, back and forth")
    add("--transport", default="nixl")
    arguments = parser.parse_args(argv)
    print_findings(asyncio.run(measure_all(arguments)), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
