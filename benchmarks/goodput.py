"""How many requests a second get what was promised, by system, workload and load.

    python -m benchmarks.goodput --workloads short:1,2,4
    python -m benchmarks.goodput --workloads azure_2023_code.csv:0.3/1:0.4,0.8 \\
        --systems vllm vllm-128 soft pooled auto chunks-512 --vllm PYTHON

The same requests at the same times for every system, on the same two cores. The SLO is fixed before
any load, for all: 5 times the TTFT and 2 times the ITL of requests of each workload that the first
system answers one by one, or the one of an earlier run; a request keeps it with its first token in
time and 90% of its gaps. Then it is swept, also for all of its gaps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.goodput_workload import WORKLOAD_HELP, Schedule, Workload, parse_workload
from benchmarks.machine import cpu_name
from benchmarks.open_loop import run_open_loop
from benchmarks.openai_stream import Ask, Target, exchange, first_model
from benchmarks.result_file import save_result
from benchmarks.servers import serving
from pdray.core.slo import Slo
from pdray.metrics.latency import LatencySummary, RequestRecord, summarize

TTFT_FACTOR, ITL_FACTOR, GAPS_IN_TIME = 5.0, 2.0, 0.9
ALL_GAPS = 1.0
SLO_SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
NUM_UNLOADED, NUM_WARM_UP = 10, 4
NO_SLO_ITL_S = 0.1
"""``slo.itl_s`` of the system whose unloaded requests give the SLO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One system under one load. ``attainments``: the share of requests that keep the SLO, by the
    share of its gaps that must be in time, then by how many times the SLO it is."""

    system: str
    workload: str
    rate_rps: float
    summary: LatencySummary
    attainments: dict[float, dict[float, float]]


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


async def run_one_by_one(base_url: str, asks: Sequence[Ask]) -> list[RequestRecord]:
    records = []
    for ask in asks:
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


def finding_of(
    system: str, workload: Workload, rate_rps: float, records: Sequence[RequestRecord], slo: Slo
) -> Finding:
    def attainment(percentile: float, scale: float) -> float:
        swept = Slo(ttft_s=scale * slo.ttft_s, itl_s=scale * slo.itl_s, percentile=percentile)
        return sum(record.meets(swept) for record in records) / len(records)

    return Finding(
        system=system,
        workload=workload.name,
        rate_rps=rate_rps,
        summary=summarize(records, slo),
        attainments={
            percentile: {scale: attainment(percentile, scale) for scale in SLO_SCALES}
            for percentile in (GAPS_IN_TIME, ALL_GAPS)
        },
    )


def measure_slos(base_url: str, workloads: Sequence[Workload], console: Console) -> dict[str, Slo]:
    """By workload, from requests that this server answers one by one."""
    slos = {}
    for workload in workloads:
        unloaded = workload.draw(NUM_UNLOADED, "unloaded")
        slos[workload.name] = slo = slo_of(asyncio.run(run_one_by_one(base_url, unloaded)))
        console.print(f"{workload.name}: {_words(slo)}")
    return slos


def measure(
    system: str,
    workloads: Sequence[Workload],
    arguments: argparse.Namespace,
    slos: Mapping[str, Slo],
    folder: Path,
    console: Console,
) -> tuple[Mapping[str, Slo], list[Finding]]:
    """Without SLOs, those that this system's unloaded requests give."""
    with serving(
        system,
        itl_s=min((slo.itl_s for slo in slos.values()), default=NO_SLO_ITL_S),
        folder=folder,
        port=arguments.port,
        vllm=arguments.vllm,
    ) as base_url:
        warm_up = workloads[-1].draw(NUM_WARM_UP, "warm-up")
        asyncio.run(run_one_by_one(base_url, warm_up))
        together = workloads[-1].draw(NUM_WARM_UP, "together")
        asyncio.run(run_schedule(base_url, [(0.0, ask) for ask in together], 600.0))
        slos = slos or measure_slos(base_url, workloads, console)
        findings = []
        for workload in workloads:
            slo = slos[workload.name]
            for rate_rps in workload.rates_rps:
                schedule = workload.schedule(rate_rps, arguments.seconds)
                timeout_s = arguments.seconds + 30.0 * slo.ttft_s
                records = asyncio.run(run_schedule(base_url, schedule, timeout_s))
                findings.append(finding_of(system, workload, rate_rps, records, slo))
                kept = f"{findings[-1].attainments[GAPS_IN_TIME][1.0]:.0%}"
                console.print(f"{system}, {workload.name} at {rate_rps:g}/s: {kept}")
    return slos, findings


def table_of(workload: str, findings: Sequence[Finding], slo: Slo) -> Table:
    table = Table(title=f"{workload}, {cpu_name()}; {_words(slo)}; P50/P99/P99.9/max")
    for column in ("system", "requests/s", "keep the SLO", "goodput/s", "TTFT s", "ITL ms"):
        table.add_column(column, justify="left" if column == "system" else "right")
    table.add_column("output tokens/s", justify="right")
    for each in findings:
        if each.workload != workload:
            continue
        ttft, itl = each.summary.ttft_s, each.summary.itl_s
        table.add_row(
            each.system,
            f"{each.rate_rps:g}",
            f"{each.attainments[GAPS_IN_TIME][1.0]:.0%}",
            f"{each.summary.goodput_rps:.2f}",
            "-" if ttft is None else _four((ttft.p50, ttft.p99, ttft.p999, ttft.max), 1.0, 2),
            "-" if itl is None else _four((itl.p50, itl.p99, itl.p999, itl.max), 1e3, 0),
            f"{each.summary.output_tokens_per_s:.0f}",
        )
    return table


def _words(slo: Slo) -> str:
    return f"SLO: TTFT {slo.ttft_s:.2f} s, ITL {slo.itl_s * 1e3:.0f} ms"


def _four(values: Sequence[float], factor: float, digits: int) -> str:
    return "/".join(f"{factor * value:.{digits}f}" for value in values)


def read_slos(path: Path) -> dict[str, Slo]:
    """Of a file that an earlier run wrote."""
    slos = json.loads(path.read_text())["slos"]
    return {workload: Slo(**slo) for workload, slo in slos.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--systems", nargs="+", default=["soft", "pooled", "auto", "chunks-512"])
    add("--workloads", nargs="+", default=["short:1,2,4"], help=WORKLOAD_HELP)
    add("--max-prompt-tokens", type=int, default=3000)
    add("--max-output-tokens", type=int, default=128)
    add("--seconds", type=float, default=60.0, help="in which requests are sent, for each rate")
    add("--slos", type=Path, help="a result file whose SLOs hold; else the first system gives them")
    add("--vllm", type=Path, help="Python of an environment with vLLM, for vllm, vllm-N, vllm-pair")
    add("--port", type=int, default=18000)
    add("--output-dir", type=Path, help="for dated JSON, which benchmarks.goodput_plot draws")
    arguments = parser.parse_args(argv)
    console = Console(width=160)
    findings = []
    try:
        limits = (arguments.max_prompt_tokens, arguments.max_output_tokens)
        workloads = [parse_workload(text, *limits) for text in arguments.workloads]
        slos: Mapping[str, Slo] = read_slos(arguments.slos) if arguments.slos else {}
        with tempfile.TemporaryDirectory(prefix="pdray-goodput-") as folder:
            for system in arguments.systems:
                slos, found = measure(system, workloads, arguments, slos, Path(folder), console)
                findings += found
    except (ValueError, OSError, aiohttp.ClientError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    for workload in workloads:
        console.print(table_of(workload.name, findings, slos[workload.name]))
    if arguments.output_dir is not None:
        path = save_result(
            "goodput",
            arguments,
            slos={name: asdict(slo) for name, slo in slos.items()},
            findings=[asdict(each) for each in findings],
        )
        console.print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
