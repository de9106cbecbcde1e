"""How many requests a second get what was promised, by system and load.

    python -m benchmarks.goodput --workload short --rates 0.5 1 2
    python -m benchmarks.goodput --workload azure_2023_code.csv --length-factor 0.25 \\
        --systems soft pooled auto chunks-512 vllm vllm-128 --vllm PYTHON --rates 0.2 0.4

The same requests at the same times for every system, on the same two cores. The SLO is fixed before
any load, for all: 5 times the TTFT and 2 times the ITL of requests that the first system answers
one by one; a request keeps it with its first token in time and 90% of its gaps. Then it is swept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.goodput_plot import save_goodput_plot
from benchmarks.machine import cpu_name
from benchmarks.open_loop import run_open_loop
from benchmarks.openai_stream import Ask, Target, exchange, first_model
from benchmarks.result_file import save_result
from benchmarks.servers import serving
from benchmarks.serving_workload import parse_lengths
from pdray.core.slo import Slo
from pdray.metrics.latency import LatencySummary, RequestRecord, summarize
from pdray.workload.arrivals import poisson_arrivals
from pdray.workload.trace import read_trace, scale_trace

TTFT_FACTOR, ITL_FACTOR, GAPS_IN_TIME = 5.0, 2.0, 0.9
SLO_SCALES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
SHORT_PROMPTS, SHORT_OUTPUTS = "20-100", "32-64"
NUM_UNLOADED, NUM_WARM_UP = 8, 6
NO_SLO_ITL_S = 0.1
"""``slo.itl_s`` of the system whose unloaded requests give the SLO."""
_VOCABULARY = range(1000, 200_000)

Schedule = Sequence[tuple[float, Ask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One system under one load. ``attainments``: the share of requests that keep the SLO, by how
    many times the SLO it is."""

    system: str
    rate_rps: float
    summary: LatencySummary
    attainments: dict[float, float]


def make_schedule(arguments: argparse.Namespace, rate_rps: float, seed: str) -> Schedule:
    """Arrivals are Poisson's. A trace gives lengths, from a random place on: its own arrivals are
    those of a service a hundred times as large, and come in lumps when slowed down. Prompts are of
    random tokens: none is found in a prefix cache."""
    rng = random.Random(seed)
    lengths = _lengths(arguments, rng)
    schedule: list[tuple[float, Ask]] = []
    for arrival_s in poisson_arrivals(rate_rps, rng):
        if arrival_s > arguments.seconds:
            return schedule
        num_prompt_tokens, max_tokens = next(lengths)
        prompt = tuple(rng.choice(_VOCABULARY) for _ in range(num_prompt_tokens))
        schedule.append((arrival_s, Ask(prompt=prompt, max_tokens=max_tokens)))
    return schedule


def _lengths(arguments: argparse.Namespace, rng: random.Random) -> Iterator[tuple[int, int]]:
    """Of prompt and output. Raises ValueError for a trace that cannot be read."""
    if arguments.workload == "short":
        prompts, outputs = parse_lengths(SHORT_PROMPTS, rng), parse_lengths(SHORT_OUTPUTS, rng)
        return zip(prompts, outputs, strict=False)
    requests = scale_trace(
        read_trace(Path(arguments.workload)),
        length_factor=arguments.length_factor,
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    start = rng.randrange(len(requests))
    lengths = [(each.prompt_tokens, each.output_tokens) for each in requests]
    return cycle(lengths[start:] + lengths[:start])


async def run_schedule(base_url: str, schedule: Schedule, timeout_s: float) -> list[RequestRecord]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        target = Target(
            base_url=base_url,
            model=await first_model(session, base_url),
            endpoint="completions",
            ignore_eos=True,
            timeout_s=timeout_s,
        )
        run = await run_open_loop(
            schedule, lambda ask: exchange(session, target, ask), lambda sent, answered: None
        )
    return [seen.record() for seen in run.answers]


async def run_one_by_one(base_url: str, schedule: Schedule) -> list[RequestRecord]:
    records = []
    for _, ask in schedule:
        records += await run_schedule(base_url, [(0.0, ask)], 600.0)
    return records


def slo_of(unloaded: Sequence[RequestRecord]) -> Slo:
    """Raises ValueError where no request was answered."""
    summary = summarize(unloaded, None)
    if summary.ttft_s is None or summary.itl_s is None:
        raise ValueError("no unloaded request was answered with more than one token")
    return Slo(
        ttft_s=TTFT_FACTOR * summary.ttft_s.p50,
        itl_s=ITL_FACTOR * summary.itl_s.p50,
        percentile=GAPS_IN_TIME,
    )


def scaled(slo: Slo, scale: float) -> Slo:
    return Slo(ttft_s=scale * slo.ttft_s, itl_s=scale * slo.itl_s, percentile=slo.percentile)


def finding_of(system: str, rate_rps: float, records: Sequence[RequestRecord], slo: Slo) -> Finding:
    attainments = {
        scale: sum(record.meets(scaled(slo, scale)) for record in records) / len(records)
        for scale in SLO_SCALES
    }
    return Finding(
        system=system,
        rate_rps=rate_rps,
        summary=summarize(records, slo),
        attainments=attainments,
    )


def measure(
    system: str, arguments: argparse.Namespace, slo: Slo | None, folder: Path, console: Console
) -> tuple[Slo, list[Finding]]:
    """Without an SLO, the one that this system's unloaded requests give."""
    with serving(
        system,
        itl_s=NO_SLO_ITL_S if slo is None else slo.itl_s,
        folder=folder,
        port=arguments.port,
        vllm=arguments.vllm,
    ) as base_url:
        warm_up = make_schedule(arguments, arguments.rates[0], "warm-up")[:NUM_WARM_UP]
        asyncio.run(run_one_by_one(base_url, warm_up))
        asyncio.run(run_schedule(base_url, [(0.0, ask) for _, ask in warm_up], 600.0))
        if slo is None:
            unloaded = make_schedule(arguments, arguments.rates[0], "unloaded")[:NUM_UNLOADED]
            slo = slo_of(asyncio.run(run_one_by_one(base_url, unloaded)))
            console.print(f"SLO: TTFT {slo.ttft_s:.2f} s, ITL {slo.itl_s * 1e3:.0f} ms")
        findings = []
        for rate_rps in arguments.rates:
            schedule = make_schedule(arguments, rate_rps, f"load {rate_rps}")
            timeout_s = arguments.seconds + 30.0 * slo.ttft_s
            records = asyncio.run(run_schedule(base_url, schedule, timeout_s))
            findings.append(finding_of(system, rate_rps, records, slo))
            console.print(f"{system} at {rate_rps:g}/s: {findings[-1].attainments[1.0]:.0%}")
    return slo, findings


def table_of(findings: Sequence[Finding], slo: Slo) -> Table:
    table = Table(
        title=f"{cpu_name()}; SLO: TTFT {slo.ttft_s:.2f} s, ITL {slo.itl_s * 1e3:.0f} ms; "
        "P50/P99/P99.9/max"
    )
    for column in ("system", "requests/s", "keep the SLO", "goodput/s", "TTFT s", "ITL ms"):
        table.add_column(column, justify="left" if column == "system" else "right")
    table.add_column("output tokens/s", justify="right")
    for each in findings:
        ttft, itl = each.summary.ttft_s, each.summary.itl_s
        table.add_row(
            each.system,
            f"{each.rate_rps:g}",
            f"{each.attainments[1.0]:.0%}",
            f"{each.summary.goodput_rps:.2f}",
            "-" if ttft is None else _four((ttft.p50, ttft.p99, ttft.p999, ttft.max), 1.0, 2),
            "-" if itl is None else _four((itl.p50, itl.p99, itl.p999, itl.max), 1e3, 0),
            f"{each.summary.output_tokens_per_s:.0f}",
        )
    return table


def _four(values: Sequence[float], factor: float, digits: int) -> str:
    return "/".join(f"{factor * value:.{digits}f}" for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--systems", nargs="+", default=["soft", "pooled", "auto", "chunks-512"])
    add("--workload", default="short", help="short, or a trace's file (.csv or .jsonl)")
    add("--length-factor", type=float, default=1.0, help="0.1: a tenth of the trace's lengths")
    add("--max-prompt-tokens", type=int, default=3000)
    add("--max-output-tokens", type=int, default=128)
    add("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="requests a second")
    add("--seconds", type=float, default=60.0, help="in which requests are sent, for each rate")
    add("--vllm", type=Path, help="Python of an environment with vLLM, for vllm and vllm-N")
    add("--port", type=int, default=18000)
    add("--output-dir", type=Path, help="for dated JSON and a PNG")
    arguments = parser.parse_args(argv)
    console = Console(width=160)
    slo, findings = None, []
    with tempfile.TemporaryDirectory(prefix="pdray-goodput-") as folder:
        for system in arguments.systems:
            try:
                slo, found = measure(system, arguments, slo, Path(folder), console)
            except (ValueError, OSError) as error:
                console.print(f"error: {error}", style="red", markup=False)
                return 2
            findings += found
    assert slo is not None, "argparse wants one system at least"
    console.print(table_of(findings, slo))
    if arguments.output_dir is not None:
        path = save_result(
            "goodput", arguments, slo=asdict(slo), findings=[asdict(each) for each in findings]
        )
        title = f"{Path(arguments.workload).stem}, {cpu_name()}"
        attainments = {(each.system, each.rate_rps): each.attainments for each in findings}
        save_goodput_plot(path.with_suffix(".png"), title, attainments)
        console.print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
