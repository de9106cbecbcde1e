"""Decodes beside long prompts in one engine: steps of fixed size against steps planned by time.

    python -m benchmarks.step_time
    python -m benchmarks.step_time --targets 1.5 2 4 --chunks 128 512 2048

Four sequences decode; prompts of 2,000 tokens arrive at a fixed rate, the same for all. The targets
are multiples of the median step of the decodes alone. Also: how well steps were foretold.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Sequence as Row
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.greedy import greedy_sequence
from benchmarks.machine import cpu_name
from benchmarks.result_file import save_result
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.model_source import resolve_model

NUM_DECODES = 4
DECODE_CONTEXT_TOKENS = 256
PROMPT_TOKENS = 2000
NUM_ALONE_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``itls_s`` are the steps that decoded; ``ratios`` measured / foretold, of all steps."""

    name: str
    itl_p50_s: float
    itl_p99_s: float
    itl_max_s: float
    ttft_p50_s: float
    prompt_tokens_per_s: float
    foretold_p50: float
    foretold_p99: float


class Trial:
    """One engine, from its first step to the last prompt's token."""

    def __init__(self, model: Path, *, max_tokens_per_step: int, itl_s: float | None) -> None:
        self._engine = Engine.load(
            model,
            EngineConfig(
                block_size=16,
                kv_cache_bytes=1 << 30,
                max_tokens_per_step=max_tokens_per_step,
                max_batch_size=16,
                max_model_len=4096,
                attention_backend="auto",
                device="cpu",
                dtype="float32",
                num_threads=1,
                tensor_parallel=1,
                itl_s=itl_s,
            ),
        )
        self._rng = random.Random(0)
        self._names = map(str, itertools.count())
        self._ratios: list[float] = []

    def alone_s(self) -> float:
        """The median step of the decodes, with nobody else there."""
        self._add_decodes()
        return statistics.median(self._step()[0] for _ in range(NUM_ALONE_STEPS))

    def steps_for(self, seconds: float) -> list[float]:
        """How long each step takes, of those that begin within so many seconds."""
        end_at = time.perf_counter() + seconds
        steps_s = []
        while time.perf_counter() < end_at:
            steps_s.append(self._step()[0])
        return steps_s

    def run(self, name: str, num_prompts: int, every_s: float) -> Finding:
        self.alone_s()
        for _ in range(2):  # both kinds of step have been seen before anything counts
            self._finish(self._add(PROMPT_TOKENS, 1))
        self._ratios.clear()
        itls_s, ttfts_s = [], []
        arrivals = [time.perf_counter() + i * every_s for i in range(num_prompts)]
        started_at = arrivals[0]
        due = list(arrivals)
        arrived: dict[str, float] = {}
        while due or arrived:
            while due and due[0] <= time.perf_counter():
                arrived[self._add(PROMPT_TOKENS, 1)] = due.pop(0)
            step_s, finished = self._step()
            itls_s.append(step_s)
            for request_id in finished & arrived.keys():
                ttfts_s.append(time.perf_counter() - arrived.pop(request_id))
        elapsed_s = time.perf_counter() - started_at
        return Finding(
            name=name,
            itl_p50_s=percentile(itls_s, 0.5),
            itl_p99_s=percentile(itls_s, 0.99),
            itl_max_s=max(itls_s),
            ttft_p50_s=percentile(ttfts_s, 0.5),
            prompt_tokens_per_s=num_prompts * PROMPT_TOKENS / elapsed_s,
            foretold_p50=percentile(self._ratios, 0.5),
            foretold_p99=percentile(self._ratios, 0.99),
        )

    def _add_decodes(self) -> None:
        for _ in range(NUM_DECODES):
            self._add(DECODE_CONTEXT_TOKENS, 3000)
        while self._engine.prefill_backlog_tokens:
            self._step()

    def _finish(self, request_id: str) -> None:
        while request_id not in self._step()[1]:
            pass

    def _add(self, num_tokens: int, max_tokens: int) -> str:
        name = next(self._names)
        prompt = [self._rng.randrange(1000, 200_000) for _ in range(num_tokens)]
        self._engine.add(greedy_sequence(prompt, max_tokens, name))
        return name

    def _step(self) -> tuple[float, set[str]]:
        output = self._engine.step()
        if output.foretold_s is not None:
            self._ratios.append(output.step_s / output.foretold_s)
        ended = {o.sequence.request_id for o in output.sequences if o.has_ended}
        return output.step_s, ended


def percentile(values: Row[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--chunks", type=int, nargs="*", default=[2048, 512, 128])
    parser.add_argument("--targets", type=float, nargs="*", default=[2.0, 4.0, 8.0])
    parser.add_argument("--num-prompts", type=int, default=6)
    parser.add_argument("--every-s", type=float, default=6.0, help="seconds between prompts")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    args = parser.parse_args()
    model = resolve_model(args.model, print)
    alone_s = Trial(model, max_tokens_per_step=512, itl_s=None).alone_s()
    runs = [(f"chunks of {size}", size, None) for size in args.chunks]
    runs += [(f"target {target:g}x", 2048, target * alone_s) for target in args.targets]
    findings = [
        Trial(model, max_tokens_per_step=size, itl_s=itl_s).run(
            name, args.num_prompts, args.every_s
        )
        for name, size, itl_s in runs
    ]
    Console().print(table_of(findings, alone_s))
    if args.output_dir:
        print(save_result("step-time", args, alone_s=alone_s, runs=list(map(asdict, findings))))


def table_of(findings: Row[Finding], alone_s: float) -> Table:
    table = Table(title=f"{cpu_name()}, one thread; decodes alone {alone_s * 1e3:.1f} ms a step")
    for column in ("steps", "ITL P50", "P99", "max", "TTFT P50", "prompt tokens/s", "foretold"):
        table.add_column(column, justify="left" if column == "steps" else "right")
    for each in findings:
        itls = (each.itl_p50_s, each.itl_p99_s, each.itl_max_s)
        table.add_row(
            each.name,
            *(f"{itl_s * 1e3:.0f} ms ({itl_s / alone_s:.1f}x)" for itl_s in itls),
            f"{each.ttft_p50_s:.2f} s",
            f"{each.prompt_tokens_per_s:.0f}",
            f"{each.foretold_p50:.2f}, P99 {each.foretold_p99:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
