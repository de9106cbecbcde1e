"""Open-loop load on any OpenAI endpoint: latencies, throughput and goodput.

    python -m benchmarks.serving --rate 2 --duration 60 --slo-ttft 2 --slo-itl 0.2

Times are the client's: TTFT from sending the request to the first event with text. Events
that one read brings count as tokens at the same time. Token counts are the server's usage,
not the number of events.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.status import Status

from benchmarks.machine import describe_machine
from benchmarks.open_loop import Run, run_open_loop
from benchmarks.openai_stream import Ask, Exchange, Target, exchange, first_model
from benchmarks.plot import save_plot
from benchmarks.prompts import make_prompt
from benchmarks.serving_report import Report, make_report, print_report, save_report
from benchmarks.serving_workload import LENGTHS_HELP, WorkloadChoice, make_workload
from pdray.core.slo import Slo

Schedule = Sequence[tuple[float, Ask]]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000")
    add("--model", help="default: the first one that the server lists")
    add("--endpoint", choices=("completions", "chat"), default="completions")
    add("--rate", type=float, default=1.0, help="requests per second")
    add("--arrivals", choices=("poisson", "constant"), default="poisson")
    add("--num-requests", type=int)
    add("--duration", type=float, help="seconds in which requests are sent")
    add("--prompt-tokens", default="256", metavar="LENGTHS", help=LENGTHS_HELP)
    add("--output-tokens", default="64", metavar="LENGTHS", help=LENGTHS_HELP)
    add("--prompt-source", choices=("words", "token-ids"), default="words")
    add("--vocab-size", type=int, default=32000, help="random token ids are below it")
    add("--trace", type=Path, help="Azure .csv or Mooncake .jsonl: arrivals and lengths")
    add("--trace-scale", type=float, default=1.0, help="2: the trace at double speed")
    add("--length-factor", type=float, default=1.0, help="0.1: a tenth of the trace's lengths")
    add("--max-prompt-tokens", type=int, default=10**9, help="cap on the trace's prompts")
    add("--max-output-tokens", type=int, default=10**9, help="cap on the trace's outputs")
    add("--seed", type=int, default=0)
    add("--ignore-eos", action="store_true", help="outputs are as long as asked for")
    add("--warmup", type=int, default=0, help="requests before the run, one after another")
    add("--timeout", type=float, default=600.0, help="seconds for one request")
    add("--slo-ttft", type=float, help="seconds")
    add("--slo-itl", type=float, help="seconds")
    add("--slo-percentile", type=float, default=0.99, help="0..1: share of a request's gaps")
    add("--output-dir", type=Path, help="for the JSON and the PNG; default: none are written")
    return parser


def parse_slo(arguments: argparse.Namespace) -> Slo | None:
    """None where no target is given. Raises ValueError where only one is."""
    if arguments.slo_ttft is None and arguments.slo_itl is None:
        return None
    if arguments.slo_ttft is None or arguments.slo_itl is None:
        raise ValueError("an SLO needs both --slo-ttft and --slo-itl")
    if not 0 < arguments.slo_percentile <= 1:
        raise ValueError(f"--slo-percentile {arguments.slo_percentile}: above 0, at most 1")
    return Slo(
        ttft_s=arguments.slo_ttft,
        itl_s=arguments.slo_itl,
        percentile=arguments.slo_percentile,
    )


def make_schedule(arguments: argparse.Namespace, seed: str) -> list[tuple[float, Ask]]:
    """All requests, made before the run so that the client has little to do in it. The same
    arguments and seed give the same requests."""
    if arguments.endpoint == "chat" and arguments.prompt_source == "token-ids":
        raise ValueError("--prompt-source token-ids: a chat has text; use --endpoint completions")
    choice = WorkloadChoice(
        rate_rps=arguments.rate,
        arrivals=arguments.arrivals,
        num_requests=arguments.num_requests,
        duration_s=arguments.duration,
        prompt_lengths=arguments.prompt_tokens,
        output_lengths=arguments.output_tokens,
        trace=arguments.trace,
        trace_speed=arguments.trace_scale,
        length_factor=arguments.length_factor,
        max_prompt_tokens=arguments.max_prompt_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    rng = random.Random(seed)
    schedule = []
    for request in make_workload(choice, rng):
        prompt = make_prompt(
            arguments.prompt_source, request.prompt_tokens, arguments.vocab_size, rng
        )
        ask = Ask(prompt=prompt, max_tokens=request.output_tokens)
        schedule.append((request.arrival_s, ask))
    return schedule


async def run_load(
    arguments: argparse.Namespace,
    warmup: Schedule,
    schedule: Schedule,
    report: Callable[[int, int], None],
) -> Run[Exchange]:
    """Warms up, one request after another, then runs the schedule. Raises ValueError where a
    warm-up request fails."""
    # No limit on connections: a client that queues requests is not open-loop.
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        target = Target(
            base_url=arguments.base_url,
            model=arguments.model or await first_model(session, arguments.base_url),
            endpoint=arguments.endpoint,
            ignore_eos=arguments.ignore_eos,
            timeout_s=arguments.timeout,
        )
        for _, ask in warmup:
            seen = await exchange(session, target, ask)
            if not seen.is_complete:
                raise ValueError(f"a warm-up request to {target.url} failed: {seen.outcome}")

        async def send(ask: Ask) -> Exchange:
            return await exchange(session, target, ask)

        return await run_open_loop(schedule, send, report)


def save_files(arguments: argparse.Namespace, run: Run[Exchange], report: Report) -> list[Path]:
    """Writes the JSON and the PNG, and returns their paths."""
    machine = describe_machine()
    folder: Path = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"serving-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"
    paths = [folder / f"{stem}.json", folder / f"{stem}.png"]
    save_report(paths[0], report, run, machine=machine, arguments=vars(arguments))
    complete = [seen.record() for seen in run.answers if seen.is_complete]
    load = arguments.trace.name if arguments.trace else f"{arguments.rate} requests/s"
    save_plot(
        paths[1],
        title=f"{load}, {machine.cpu}, {machine.num_cores} cores",
        ttfts_s=[record.ttft_s for record in complete if record.ttft_s is not None],
        itls_s=[itl_s for record in complete for itl_s in record.itls_s],
        spans_s=[
            (seen.sent_at - run.started_at, (seen.ended_at or seen.sent_at) - run.started_at)
            for seen in run.answers
        ],
        slo_ttft_s=arguments.slo_ttft,
        slo_itl_s=arguments.slo_itl,
    )
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    console = Console()
    try:
        slo = parse_slo(arguments)
        schedule = make_schedule(arguments, f"run {arguments.seed}")
        # Prompts of its own: the run's would be found in the prefix cache.
        warmup = make_schedule(arguments, f"warm-up {arguments.seed}")[: arguments.warmup]
        with Status("warm-up", console=console, refresh_per_second=2) as status:

            def show(num_sent: int, num_answered: int) -> None:
                status.update(f"{num_sent} of {len(schedule)} sent, {num_answered} answered")

            run = asyncio.run(run_load(arguments, warmup, schedule, show))
    except (ValueError, OSError, aiohttp.ClientError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    report = make_report(run, slo)
    print_report(report, console)
    if arguments.output_dir is not None:
        for path in save_files(arguments, run, report):
            console.print(f"wrote {path}", highlight=False)
    return 0 if report.summary.num_complete else 1


if __name__ == "__main__":
    sys.exit(main())
