"""How long a request is between its prefill and its decode, and how much of the transfer was
hidden behind compute; read from a running pdray server's own metrics.

    python -m benchmarks.handoff --prompt-tokens 128 512 1024 2000

Nobody else may use the server meanwhile: its metrics do not know whose request it was.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.openai_stream import Ask, Target, exchange, first_model
from benchmarks.prompts import make_prompt
from benchmarks.result_file import save_result
from benchmarks.scrape import Scrape, bucket_quantile

HANDOFF = "pdray_handoff_seconds"
METRICS_WAIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Of all requests of one prompt length. Percentiles are as fine as the histogram's buckets;
    ``hidden_share`` is the bytes that had arrived before the last chunk was computed, over all."""

    num_words: int
    prompt_tokens: float
    num_handoffs: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    mean_s: float | None
    transfer_bytes: float
    transfer_blocks: float
    hidden_share: float | None


def compare(before: Scrape, after: Scrape, *, num_words: int, prompt_tokens: float) -> Finding:
    buckets = after.buckets_since(before, HANDOFF)
    num_handoffs = int(after.total_since(before, f"{HANDOFF}_count"))
    seconds = after.total_since(before, f"{HANDOFF}_sum")
    transfer_bytes = after.total_since(before, "pdray_kv_transfer_bytes_total")
    hidden_bytes = after.total_since(before, "pdray_kv_transfer_hidden_bytes_total")
    return Finding(
        num_words=num_words,
        prompt_tokens=prompt_tokens,
        num_handoffs=num_handoffs,
        p50_s=bucket_quantile(buckets, 0.5),
        p90_s=bucket_quantile(buckets, 0.9),
        p99_s=bucket_quantile(buckets, 0.99),
        mean_s=seconds / num_handoffs if num_handoffs else None,
        transfer_bytes=transfer_bytes,
        transfer_blocks=after.total_since(before, "pdray_kv_transfer_blocks_total"),
        hidden_share=hidden_bytes / transfer_bytes if transfer_bytes else None,
    )


async def scrape(session: aiohttp.ClientSession, base_url: str) -> Scrape:
    async with session.get(f"{base_url.rstrip('/')}/metrics") as answer:
        answer.raise_for_status()
        return Scrape.parse(await answer.text())


async def measure_length(
    session: aiohttp.ClientSession, target: Target, asks: Sequence[Ask], concurrency: int
) -> Finding:
    """Raises ValueError where a request fails or its handoff does not show in the metrics."""
    before = await scrape(session, target.base_url)
    gate = asyncio.Semaphore(concurrency)

    async def one(ask: Ask) -> int:
        async with gate:
            seen = await exchange(session, target, ask)
        if not seen.is_complete:
            raise ValueError(f"a request to {target.url} failed: {seen.outcome}")
        return seen.num_prompt_tokens or 0

    lengths = await asyncio.gather(*(one(ask) for ask in asks))
    give_up_at = time.monotonic() + METRICS_WAIT_S
    while True:
        after = await scrape(session, target.base_url)
        if after.total_since(before, f"{HANDOFF}_count") >= len(asks):
            break
        if time.monotonic() > give_up_at:
            raise ValueError(
                f"{len(asks)} requests were answered, but {HANDOFF} counted"
                f" {after.total_since(before, f'{HANDOFF}_count'):.0f}"
            )
        await asyncio.sleep(0.5)
    num_words = len(str(asks[0].prompt).split())
    return compare(
        before, after, num_words=num_words, prompt_tokens=sum(lengths) / max(1, len(lengths))
    )


async def measure_all(arguments: argparse.Namespace) -> list[Finding]:
    rng = random.Random(arguments.seed)

    def ask(num_words: int) -> Ask:
        prompt = make_prompt("words", num_words, 0, rng)
        return Ask(prompt=prompt, max_tokens=arguments.output_tokens)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        target = Target(
            base_url=arguments.base_url,
            model=arguments.model or await first_model(session, arguments.base_url),
            endpoint="completions",
            ignore_eos=True,
            timeout_s=600.0,
        )
        await measure_length(session, target, [ask(64)], 1)  # connections and cold caches
        return [
            await measure_length(
                session,
                target,
                [ask(num_words) for _ in range(arguments.num_requests)],
                arguments.concurrency,
            )
            for num_words in arguments.prompt_tokens
        ]


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    table = Table(title="Handoff: prefill done to decode can run")
    for column in ("prompt tokens", "handoffs", "P50 ms", "P90 ms", "P99 ms", "mean ms"):
        table.add_column(column, justify="right")
    for column in ("MB moved", "blocks", "hidden"):
        table.add_column(column, justify="right")
    for found in findings:
        times_s = (found.p50_s, found.p90_s, found.p99_s, found.mean_s)
        table.add_row(
            f"{found.prompt_tokens:.0f}",
            str(found.num_handoffs),
            *("-" if seconds is None else f"{1000 * seconds:.2f}" for seconds in times_s),
            f"{found.transfer_bytes / 1e6:.1f}",
            f"{found.transfer_blocks:.0f}",
            "-" if found.hidden_share is None else f"{found.hidden_share:.1%}",
        )
    console.print(table)
    console.print("percentiles are as fine as the histogram's buckets; means are exact")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000")
    add("--model", help="default: the first one that the server lists")
    add("--prompt-tokens", type=int, nargs="+", default=[128, 512, 1024, 2000])
    add("--num-requests", type=int, default=20, help="of each length")
    add("--concurrency", type=int, default=1)
    add("--output-tokens", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--output-dir", type=Path, help="for the JSON; default: none is written")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        findings = asyncio.run(measure_all(arguments))
    except (ValueError, OSError, aiohttp.ClientError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    print_findings(findings, console)
    if arguments.output_dir is not None:
        found = [asdict(each) for each in findings]
        path = save_result("handoff", arguments, findings=found)
        console.print(f"wrote {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
