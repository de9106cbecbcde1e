"""Decode never waits? Steady chats, with long prompts arriving on top, through real servers.

    python -m benchmarks.interference
    python -m benchmarks.interference --systems pooled soft one-chunks-512 --rate 0.25 --seconds 40
    python -m benchmarks.interference --systems vllm vllm-128 vllm-pair --vllm PYTHON

Four chats stream; after a while alone, prompts of 2,000 tokens arrive at random times, the same for
every system, on the same two cores. The floor that no software can beat: decode steps in a bare
process, beside matrix products in another on the other core.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.machine import cpu_name
from benchmarks.openai_stream import Ask, Exchange, Target, exchange, first_model
from benchmarks.result_file import save_result
from benchmarks.servers import serving
from benchmarks.step_time import Trial, percentile
from pdray.model_source import resolve_model

NUM_CHATS = 4
CHAT_PROMPT_TOKENS = 200
CHAT_TOKENS = 3000
LONG_PROMPT_TOKENS = 2000
LONG_OUTPUT_TOKENS = 16
WARM_UP_PROMPTS = 6
_MATRIX_PRODUCTS = """
import torch
torch.set_num_threads(1)
matrix = torch.rand(1024, 1024)
while True:
    matrix @ matrix
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Of the chats' gaps between tokens, alone and under load; of the long prompts' first tokens.
    ``num_late`` prompts had no answer when the time was over; None where none had."""

    system: str
    alone_p50_s: float
    alone_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    itl_p999_s: float
    itl_max_s: float
    chat_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_max_s: float | None
    num_prompts: int
    num_late: int


def measure_floor(model: Path, seconds: float) -> dict[str, float]:
    """Steps of four decodes, pinned to one core: alone, and beside matrix products on the other."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    try:
        trial = Trial(model, max_tokens_per_step=512, itl_s=None)
        trial.alone_s()
        alone = trial.steps_for(seconds)
        command = ["taskset", "-c", str(cores[-1]), sys.executable, "-c", _MATRIX_PRODUCTS]
        other = subprocess.Popen(command)
        try:
            time.sleep(3.0)
            beside = trial.steps_for(seconds)
        finally:
            other.kill()
            other.wait()
    finally:
        os.sched_setaffinity(0, set(cores))
    return {
        "alone_p50_s": percentile(alone, 0.5),
        "alone_p99_s": percentile(alone, 0.99),
        "beside_p50_s": percentile(beside, 0.5),
        "beside_p99_s": percentile(beside, 0.99),
    }


def measure_system(system: str, arguments: argparse.Namespace, folder: Path) -> Finding:
    with serving(
        system, itl_s=arguments.itl, folder=folder, port=arguments.port, vllm=arguments.vllm
    ) as base_url:
        return asyncio.run(_load(system, base_url, arguments))


async def _load(system: str, base_url: str, arguments: argparse.Namespace) -> Finding:
    rng = random.Random(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        model = await first_model(session, base_url)
        target = Target(
            base_url=base_url, model=model, endpoint="completions", ignore_eos=True, timeout_s=600.0
        )

        def ask(num_tokens: int, max_tokens: int) -> Ask:
            prompt = tuple(rng.randrange(1000, 200_000) for _ in range(num_tokens))
            return Ask(prompt=prompt, max_tokens=max_tokens)

        for _ in range(WARM_UP_PROMPTS):
            pair = (ask(LONG_PROMPT_TOKENS // 2, 24), ask(CHAT_PROMPT_TOKENS, 24))
            await asyncio.gather(*(exchange(session, target, each) for each in pair))
        chat_asks = [ask(CHAT_PROMPT_TOKENS, CHAT_TOKENS) for _ in range(NUM_CHATS)]
        chats = [_Stream(session, target, each) for each in chat_asks]
        await asyncio.gather(*(chat.first_token() for chat in chats))
        await asyncio.sleep(2.0)
        alone_from = time.monotonic()
        await asyncio.sleep(arguments.alone)
        load_from = time.monotonic()
        due_s, prompts = 0.0, []
        while (due_s := due_s + rng.expovariate(arguments.rate)) < arguments.seconds:
            await asyncio.sleep(max(0.0, load_from + due_s - time.monotonic()))
            prompts.append(_Stream(session, target, ask(LONG_PROMPT_TOKENS, LONG_OUTPUT_TOKENS)))
        await asyncio.sleep(max(0.0, load_from + arguments.seconds - time.monotonic()))
        load_until = time.monotonic()
        alone = [gap for chat in chats for gap in chat.gaps(alone_from, load_from)]
        loaded = [gap for chat in chats for gap in chat.gaps(load_from, load_until)]
        ttfts = [prompt.ttft_s for prompt in prompts]
        for stream in (*chats, *prompts):
            stream.task.cancel()
    known = [ttft for ttft in ttfts if ttft is not None]
    if not ttfts or not alone or not loaded:
        raise ValueError("no prompt was sent, or no chat went on")
    return Finding(
        system=system,
        alone_p50_s=percentile(alone, 0.5),
        alone_p99_s=percentile(alone, 0.99),
        itl_p50_s=percentile(loaded, 0.5),
        itl_p99_s=percentile(loaded, 0.99),
        itl_p999_s=percentile(loaded, 0.999),
        itl_max_s=max(loaded),
        chat_tokens_per_s=len(loaded) / (load_until - load_from),
        ttft_p50_s=percentile(known, 0.5) if known else None,
        ttft_max_s=max(known, default=None),
        num_prompts=len(ttfts),
        num_late=len(ttfts) - len(known),
    )


class _Stream:
    """A request under way, whose times can be read meanwhile."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, ask: Ask) -> None:
        self.seen = Exchange(sent_at=time.monotonic())
        self.task = asyncio.create_task(exchange(session, target, ask, self.seen))

    async def first_token(self) -> None:
        while not self.seen.event_times:
            await asyncio.sleep(0.05)

    @property
    def ttft_s(self) -> float | None:
        times = self.seen.event_times
        return times[0] - self.seen.sent_at if times else None

    def gaps(self, start_at: float, end_at: float) -> list[float]:
        """Those that ended between the two; one that still lasts at the end counts as it is."""
        times = [*self.seen.event_times, end_at]
        return [b - a for a, b in pairwise(times) if start_at <= b <= end_at]


def table_of(findings: Sequence[Finding], floor: dict[str, float]) -> Table:
    table = Table(
        title=f"{cpu_name()}; floor: P99 {floor['beside_p99_s'] * 1e3:.0f} ms beside products, "
        f"{floor['alone_p99_s'] * 1e3:.0f} ms alone (P50 {floor['beside_p50_s'] * 1e3:.0f}, "
        f"{floor['alone_p50_s'] * 1e3:.0f})"
    )
    for column in ("system", "alone P50, P99", "ITL P50", "P99", "P99.9", "max", "of floor's P99"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for column in ("chat tokens/s", "TTFT P50", "max", "late"):
        table.add_column(column, justify="right")
    for each in findings:
        itls = (each.itl_p50_s, each.itl_p99_s, each.itl_p999_s, each.itl_max_s)
        ttfts = (each.ttft_p50_s, each.ttft_max_s)
        table.add_row(
            each.system,
            f"{each.alone_p50_s * 1e3:.0f}, {each.alone_p99_s * 1e3:.0f} ms",
            *(f"{itl_s * 1e3:.0f} ms" for itl_s in itls),
            f"{each.itl_p99_s / floor['beside_p99_s']:.2f}x",
            f"{each.chat_tokens_per_s:.1f}",
            *("-" if ttft_s is None else f"{ttft_s:.2f} s" for ttft_s in ttfts),
            f"{each.num_late} of {each.num_prompts}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--systems", nargs="+", default=["pooled", "soft", "auto", "chunks-512", "chunks-128"])
    add("--rate", type=float, default=0.25, help="long prompts a second")
    add("--alone", type=float, default=10.0, help="seconds of the chats alone")
    add("--seconds", type=float, default=40.0, help="under load")
    add("--itl", type=float, default=0.2, help="slo.itl_s of pooled, soft and auto")
    add("--vllm", type=Path, help="Python of an environment with vLLM, for vllm, vllm-N, vllm-pair")
    add("--port", type=int, default=18000)
    add("--output-dir", type=Path, help="for dated JSON")
    arguments = parser.parse_args(argv)
    console = Console()
    floor = measure_floor(resolve_model("demo", print), arguments.alone)
    findings = []
    with tempfile.TemporaryDirectory(prefix="pdray-interference-") as folder:
        for system in arguments.systems:
            console.print(f"{system} ...")
            try:
                findings.append(measure_system(system, arguments, Path(folder)))
                console.print(findings[-1])
            except (ValueError, OSError, aiohttp.ClientError) as error:
                console.print(f"error: {error}", style="red", markup=False)
    console.print(table_of(findings, floor))
    if arguments.output_dir is not None:
        found = [asdict(each) for each in findings]
        console.print(f"{save_result('interference', arguments, floor=floor, systems=found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
