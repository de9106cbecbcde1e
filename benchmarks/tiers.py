"""A prompt's first token with its KV brought back from host memory or from disk, against computing
it, and the length from which that pays.

    python -m benchmarks.tiers
    python -m benchmarks.tiers --prompt-tokens 500 4000 --folder /mnt/nvme --output-dir results

One engine in this process, one prompt at a time. Bringing back is timed from the prompt's arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig

from benchmarks.greedy import greedy_sequence
from benchmarks.machine import describe_machine
from benchmarks.prefix_bookkeeping import load_engine
from benchmarks.result_file import save_result
from pdray.core.clock import EpochClock
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence as EngineSequence
from pdray.kvcache.prefix_hash import HASH_TOKENS
from pdray.kvcache.tiers.base import TierConfig
from pdray.model_source import resolve_model
from pdray.worker.tiering import EngineTiers

KINDS = ("computed", "device", "host", "disk", "disk, not in the page cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Of one prompt: seconds to its first token, of which ``promotion_s`` to bring its KV back."""

    num_tokens: int
    kind: str
    seconds: float
    promotion_s: float
    num_cached_tokens: int
    num_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    model = resolve_model(args.model, print)
    torch.set_num_threads(args.threads)
    engine = load_engine(model, args.dtype, args.threads, max(args.prompt_tokens))
    vocab_size: int = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, tiers_of(engine, folder) as tiers:
        bench = Bench(engine, tiers, Path(folder), vocab_size)
        bench.measure(256, 0)  # the first prompt of all is slower
        answers = [
            answer
            for num_tokens in args.prompt_tokens
            for number in range(1, args.repeats + 1)
            for answer in bench.measure(num_tokens, number)
        ]
    title = f"{describe_machine().cpu}, {args.dtype}, threads: {args.threads}"
    console.print(table_of(answers, title))
    for kind in KINDS[2:]:
        console.print(
            f"from {kind}: faster than computing {crossing_of(answers, kind)}; "
            f"{rate_of(answers, kind):,.0f} tokens/s come back"
        )
    if args.output_dir is not None:
        found = [asdict(answer) for answer in answers]
        path = save_result("tiers", args, answers=found)
        console.print(f"wrote {path}", highlight=False)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    lengths = [17, 33, 65, 129, 500, 1000, 2000, 4000]
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=lengths)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="of the disk tier; a temporary one below it")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    args = parser.parse_args(argv)
    if min(args.prompt_tokens) <= HASH_TOKENS:
        parser.error(f"--prompt-tokens {min(args.prompt_tokens)}: more than {HASH_TOKENS}")
    return args


@contextmanager
def tiers_of(engine: Engine, folder: str) -> Iterator[EngineTiers]:
    tiers = EngineTiers(
        TierConfig(
            host_bytes=1 << 30, disk_bytes=2 << 30, disk_path=Path(folder), session_ttl_s=3600.0
        ),
        engine,
        clock=EpochClock(),
        on_promoted=lambda _blocks, _seconds: None,
    )
    tiers.start()
    try:
        yield tiers
    finally:
        tiers.stop()


class Bench:
    """Prompts are ended with the session's mark, so that copies of their blocks are everywhere;
    then what lies nearer than the tier that is measured is taken away."""

    def __init__(self, engine: Engine, tiers: EngineTiers, folder: Path, vocab_size: int) -> None:
        self._engine = engine
        self._tiers = tiers
        self._folder = folder
        self._vocab_size = vocab_size

    def measure(self, num_tokens: int, number: int) -> Iterator[Answer]:
        rng = random.Random(f"{num_tokens} {number}")
        prompt = [rng.randrange(1, self._vocab_size) for _ in range(num_tokens)]
        for kind in KINDS:
            self._leave_only(kind)
            yield asyncio.run(self._ask(prompt, kind))
            self._tiers.settle()

    def _leave_only(self, kind: str) -> None:
        if kind not in KINDS[:2]:
            self._clear_device()
        if kind in KINDS[3:]:
            self._clear_host()
        if kind == KINDS[4]:
            self._clear_page_cache()

    def _clear_device(self) -> None:
        pool = self._engine.pool
        block_ids = pool.allocate(pool.num_available_blocks)
        assert block_ids is not None
        pool.release(block_ids)

    def _clear_host(self) -> None:
        entries = self._tiers.tiers.host.entries
        for entry in list(entries):
            entries.remove(entry)

    def _clear_page_cache(self) -> None:
        (path,) = self._folder.rglob("blocks")
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)

    async def _ask(self, prompt: Sequence[int], kind: str) -> Answer:
        sequence = greedy_sequence(prompt, 1)
        sequence.request = replace(sequence.request, session_id="bench")
        before = {each.tier: each.num_promoted for each in self._tiers.snapshots()}
        started_at = time.perf_counter()
        self._engine.prefix_cache.hash(sequence)
        if kind in KINDS[2:]:
            assert await self._tiers.promote(sequence.prefix_hashes)
        promoted_at = time.perf_counter()
        run_to_its_end(self._engine, sequence)
        ended_at = time.perf_counter()
        counts = {
            each.tier: each.num_promoted - before[each.tier] for each in self._tiers.snapshots()
        }
        tier = kind.partition(",")[0]
        assert set(counts) - {each for each, count in counts.items() if not count} <= {tier}
        return Answer(
            num_tokens=len(prompt),
            kind=kind,
            seconds=ended_at - started_at,
            promotion_s=promoted_at - started_at,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            num_bytes=sum(counts.values()) * self._engine.layout.block_bytes,
        )


def run_to_its_end(engine: Engine, sequence: EngineSequence) -> None:
    engine.add(sequence)
    while not engine.step().sequences or not sequence.output_token_ids:
        pass


def table_of(answers: Sequence[Answer], title: str) -> Table:
    """Medians."""
    legend = "ms to the first token [of it: to bring KV back] (computed / it)"
    table = Table(title=Text(f"{legend}, {title}", "italic"))
    for column in ("prompt tokens", "MB of KV", *KINDS):
        table.add_column(column, justify="right")
    for num_tokens in dict.fromkeys(each.num_tokens for each in answers):
        computed_s = seconds_of(answers, num_tokens, KINDS[0])
        num_bytes = max(each.num_bytes for each in answers if each.num_tokens == num_tokens)
        cells = [f"{num_tokens:,}", f"{num_bytes / 1e6:.1f}"]
        for kind in KINDS:
            seconds = seconds_of(answers, num_tokens, kind)
            promotion_s = promotion_seconds_of(answers, num_tokens, kind)
            back = f" [{1e3 * promotion_s:,.1f}]" if kind in KINDS[2:] else ""
            cells.append(f"{1e3 * seconds:,.0f}{back} ({computed_s / seconds:.1f})")
        # As text: brackets are marks otherwise.
        table.add_row(*map(Text, cells))
    return table


def seconds_of(answers: Sequence[Answer], num_tokens: int, kind: str) -> float:
    return median(
        each.seconds for each in answers if (each.num_tokens, each.kind) == (num_tokens, kind)
    )


def promotion_seconds_of(answers: Sequence[Answer], num_tokens: int, kind: str) -> float:
    return median(
        each.promotion_s for each in answers if (each.num_tokens, each.kind) == (num_tokens, kind)
    )


def rate_of(answers: Sequence[Answer], kind: str) -> float:
    """Tokens per second that come back, of the longest prompt: the crossing point of another
    machine is where it computes as many."""
    num_tokens = max(each.num_tokens for each in answers)
    return num_tokens / promotion_seconds_of(answers, num_tokens, kind)


def crossing_of(answers: Sequence[Answer], kind: str) -> str:
    """Where bringing back begins to be the faster one, by the lengths that were measured."""
    lengths = sorted({each.num_tokens for each in answers})
    slower = [
        length
        for length in lengths
        if seconds_of(answers, length, kind) >= seconds_of(answers, length, KINDS[0])
    ]
    if not slower:
        return f"at {lengths[0]} tokens already, the fewest measured"
    longer = [length for length in lengths if length > slower[-1]]
    if not longer:
        return "at no length measured"
    return f"between {slower[-1]} and {longer[0]} tokens"


if __name__ == "__main__":
    sys.exit(main())
