"""A prompt's first token with and without its prefix in the cache, and what the cache costs.

    python -m benchmarks.prefix_cache
    python -m benchmarks.prefix_cache --vllm ~/vllm/bin/python --output-dir results

Each engine runs in a process of its own, one prompt at a time; what the cache costs beside the
model is measured in this one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig

from benchmarks.engine_peers.prefixes import KINDS
from benchmarks.peer_process import run_peer
from benchmarks.prefix_bookkeeping import (
    DecodeCost,
    PromptCost,
    cost_of_decode,
    cost_of_prompt,
    load_engine,
)
from benchmarks.result_file import save_result
from pdray.model_source import resolve_model

Answers = list[dict[str, Any]]
"""One engine's, as it reported them."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    model = resolve_model(args.model, print)
    vocab_size: int = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    asked = ["--prefix-lengths", *map(str, args.prompt_tokens), "--repeats", str(args.repeats)]
    asked += ["--vocab-size", str(vocab_size)]
    answers: dict[str, Answers] = {}
    for peer, python in {"pdray": sys.executable, "vllm": args.vllm}.items():
        if python is not None:
            console.print(f"{args.dtype}, {args.threads} threads: {peer}")
            answers[peer] = run_peer(python, peer, model, args.dtype, args.threads, *asked)
            console.print(table_of(answers[peer], peer))
    torch.set_num_threads(args.threads)
    engine = load_engine(model, args.dtype, args.threads, max(args.prompt_tokens))
    prompts = [cost_of_prompt(engine, length, vocab_size) for length in args.prompt_tokens]
    decodes = [
        cost_of_decode(engine, batch_size, args.context, vocab_size)
        for batch_size in args.batch_sizes
    ]
    console.print(prompt_table_of(prompts))
    console.print(decode_table_of(decodes, args.context))
    if args.output_dir is not None:
        console.print(f"wrote {save(answers, prompts, decodes, args)}", highlight=False)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="of decodes")
    parser.add_argument("--context", type=int, default=256, help="of decodes, in tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vLLM for CPU")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    args = parser.parse_args(argv)
    if max(args.batch_sizes) > 32:
        parser.error(f"--batch-sizes {max(args.batch_sizes)}: up to 32")
    return args


def table_of(answers: Answers, peer: str) -> Table:
    """A kind's median milliseconds, tokens in the cache, and the cold prompt's time over its."""
    title = Text(f"{peer}: ms to the first token [tokens in the cache] (cold / it)", "italic")
    table = Table(title=title)
    table.add_column("prompt tokens", justify="right")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for num_tokens in dict.fromkeys(answer["num_tokens"] for answer in answers):
        cells = [str(num_tokens)]
        cold_s = seconds_of(answers, num_tokens, "cold")
        for kind in KINDS:
            seconds = seconds_of(answers, num_tokens, kind)
            cached = {each["cached_tokens"] for each in answers_of(answers, num_tokens, kind)}
            found = "-".join(str(count) for count in sorted(cached))
            cells.append(f"{1e3 * seconds:,.0f} [{found}] ({cold_s / seconds:.1f})")
        table.add_row(*cells)
    return table


def answers_of(answers: Answers, num_tokens: int, kind: str) -> Answers:
    return [each for each in answers if (each["num_tokens"], each["case"]) == (num_tokens, kind)]


def seconds_of(answers: Answers, num_tokens: int, kind: str) -> float:
    seconds: list[float] = [each["seconds"] for each in answers_of(answers, num_tokens, kind)]
    return median(seconds)


def prompt_table_of(costs: Sequence[PromptCost]) -> Table:
    table = Table(title="The cache's own work for a prompt, microseconds")
    for column in ("prompt tokens", "hash it", "look it up: nothing there", "all there"):
        table.add_column(column, justify="right")
    for cost in costs:
        seconds = (cost.hash_s, cost.miss_s, cost.hit_s)
        table.add_row(str(cost.num_tokens), *(f"{1e6 * each:,.0f}" for each in seconds))
    return table


def decode_table_of(costs: Sequence[DecodeCost], context: int) -> Table:
    table = Table(title=f"The cache's own work in a decode step, context {context}")
    for column in ("batch", "step, ms", "naming, us", "share", "all fill a block, us"):
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.batch_size),
            f"{1e3 * cost.step_s:.1f}",
            f"{1e6 * cost.naming_s:.0f}",
            f"{cost.share:.2%}",
            f"{1e6 * cost.naming_in_full_step_s:.0f}",
        )
    return table


def save(
    answers: dict[str, Answers],
    prompts: Sequence[PromptCost],
    decodes: Sequence[DecodeCost],
    args: argparse.Namespace,
) -> Path:
    return save_result(
        "prefix_cache",
        args,
        answers=answers,
        prompts=[asdict(cost) for cost in prompts],
        decodes=[asdict(cost) for cost in decodes],
    )


if __name__ == "__main__":
    sys.exit(main())
