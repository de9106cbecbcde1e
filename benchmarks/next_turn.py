"""The first token of a conversation's next turn where another worker has made the one before: with
its KV pulled from there, against all of it computed again.

    python -m benchmarks.next_turn --history-tokens 500 1000 2000 4000

Two prefill workers and a decode worker in this process take turns: the second turn comes to a
prefill worker that has nothing of the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from benchmarks.greedy import greedy_sequence
from benchmarks.result_file import save_result
from pdray.config import PdrayConfig, parse_config
from pdray.local import LocalCluster
from pdray.model_source import resolve_model

ANSWER_TOKENS = 17
"""A block is full with it, and the newest token without KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Medians of the seconds to its first token, and of its tokens that were pulled."""

    history_tokens: int
    new_tokens: int
    pulled_tokens: float
    pulled_s: float
    computed_s: float


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    turns = asyncio.run(measure_all(args))
    console.print(table_of(turns))
    if args.output_dir is not None:
        found = [asdict(turn) for turn in turns]
        path = save_result("next_turn", args, turns=found)
        console.print(f"wrote {path}", highlight=False)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a local folder, or the demo model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--history-tokens", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kv-cache-bytes", default="1GiB", help="of each of the three workers")
    parser.add_argument("--output-dir", type=Path, help="for dated JSON")
    return parser.parse_args(argv)


def config_of(args: argparse.Namespace, model: Path) -> PdrayConfig:
    longest = max(args.history_tokens) + args.new_tokens + 2 * ANSWER_TOKENS
    engine = {
        "kv_cache_bytes": args.kv_cache_bytes,
        "max_model_len": longest,
        "num_threads": args.threads,
    }
    pool = {"node_groups": ["here"], "engine": engine}
    return parse_config(
        {
            "model": str(model),
            "dtype": args.dtype,
            "node_groups": {"here": {}},
            "pools": {
                "prefill": pool | {"role": "prefill", "replicas": 2},
                "decode": pool | {"role": "decode"},
            },
            "controller": {"placement": "round_robin"},
        }
    )


async def measure_all(args: argparse.Namespace) -> list[Turn]:
    torch.set_num_threads(args.threads)
    model = resolve_model(args.model, print)
    vocab_size: int = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    rng = random.Random(0)
    async with LocalCluster(config_of(args, model), model) as cluster:
        measuring = Conversations(cluster, vocab_size, rng)
        await measuring.converse(100, args.new_tokens)  # what is compiled once
        return [
            await measuring.measure(history_tokens, args.new_tokens, args.repeats)
            for history_tokens in args.history_tokens
        ]


class Conversations:
    """One after the other, of random tokens."""

    def __init__(self, cluster: LocalCluster, vocab_size: int, rng: random.Random) -> None:
        self._cluster = cluster
        self._vocab_size = vocab_size
        self._rng = rng
        self._num_requests = 0

    async def measure(self, history_tokens: int, new_tokens: int, repeats: int) -> Turn:
        runs = [await self.converse(history_tokens, new_tokens) for _ in range(repeats)]
        pulled_s, computed_s, pulled_tokens = (median(each) for each in zip(*runs, strict=True))
        return Turn(
            history_tokens=history_tokens,
            new_tokens=new_tokens,
            pulled_tokens=pulled_tokens,
            pulled_s=pulled_s,
            computed_s=computed_s,
        )

    async def converse(self, history_tokens: int, new_tokens: int) -> tuple[float, float, int]:
        """Seconds to the second turn's first token, those where nobody knows the first turn, and
        how many of its tokens were found."""
        prompt = self._random_tokens(history_tokens - ANSWER_TOKENS)
        answer, _, _ = await self._ask(prompt)
        turn = prompt + answer + self._random_tokens(new_tokens)
        _, pulled_s, num_pulled = await self._ask(turn)
        _, computed_s, num_found = await self._ask(turn, cache_salt=f"{self._num_requests}")
        assert num_found == 0, f"{num_found} tokens were known under another salt"
        return pulled_s, computed_s, num_pulled

    def _random_tokens(self, num_tokens: int) -> tuple[int, ...]:
        # The first ones are special in most vocabularies.
        return tuple(self._rng.choices(range(10, self._vocab_size), k=num_tokens))

    async def _ask(
        self, prompt: tuple[int, ...], cache_salt: str | None = None
    ) -> tuple[tuple[int, ...], float, int]:
        """The answer, the seconds to its first token, and the prompt's tokens that were found."""
        self._num_requests += 1
        sequence = greedy_sequence(prompt, ANSWER_TOKENS, f"{self._num_requests}")
        request = replace(sequence.request, cache_salt=cache_salt)
        started_at = time.perf_counter()
        deltas = []
        async for delta in self._cluster.frontend.generate(request):
            deltas.append((time.perf_counter() - started_at, delta))
        first_s, first = deltas[0]
        answer = tuple(token_id for _, delta in deltas for token_id in delta.token_ids)
        return answer, first_s, first.num_cached_tokens or 0


def table_of(turns: Sequence[Turn]) -> Table:
    table = Table(title="The next turn's first token, ms")
    for column in ("history", "new", "pulled", "with it", "all computed", "times as fast"):
        table.add_column(column, justify="right")
    for turn in turns:
        table.add_row(
            str(turn.history_tokens),
            str(turn.new_tokens),
            f"{turn.pulled_tokens:.0f}",
            f"{1e3 * turn.pulled_s:.0f}",
            f"{1e3 * turn.computed_s:.0f}",
            f"{turn.computed_s / turn.pulled_s:.1f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
