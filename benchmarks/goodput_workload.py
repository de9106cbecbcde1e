"""What goodput offers to its servers: a workload's requests, and when they leave."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.openai_stream import Ask
from benchmarks.serving_workload import parse_lengths
from pdray.workload.arrivals import poisson_arrivals
from pdray.workload.lengths import scaled_length
from pdray.workload.trace import read_trace

SHORT = "short"
SHORT_PROMPTS, SHORT_OUTPUTS = "20-100", "32-64"
WORKLOAD_HELP = (
    f"{SHORT}:RPS,..., or a trace's file (.csv, .jsonl) with factors of its prompts' and outputs' "
    "lengths, FILE:FACTOR/FACTOR:RPS,..."
)
_VOCABULARY = range(1000, 200_000)

Schedule = Sequence[tuple[float, Ask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``lengths``: pairs of prompt and output tokens, drawn at random; None for short ones."""

    name: str
    rates_rps: tuple[float, ...]
    lengths: Sequence[tuple[int, int]] | None

    def draw(self, count: int, seed: str) -> list[Ask]:
        """Requests of this workload's lengths. Prompts are of random tokens: none is found in a
        prefix cache."""
        draw = self._drawer(random.Random(f"lengths {seed}"))
        tokens = random.Random(f"tokens {seed}")
        return [
            Ask(prompt=tuple(tokens.choices(_VOCABULARY, k=num_tokens)), max_tokens=max_tokens)
            for num_tokens, max_tokens in (draw() for _ in range(count))
        ]

    def schedule(self, rate_rps: float, seconds: float) -> Schedule:
        """Arrivals are Poisson's: a trace's own are those of a service a hundred times as large,
        and come in lumps when slowed down."""
        seed = f"{self.name} at {rate_rps}"
        arrivals_s = []
        for arrival_s in poisson_arrivals(rate_rps, random.Random(f"arrivals {seed}")):
            if arrival_s > seconds:
                break
            arrivals_s.append(arrival_s)
        return list(zip(arrivals_s, self.draw(len(arrivals_s), seed), strict=True))

    def _drawer(self, rng: random.Random) -> Callable[[], tuple[int, int]]:
        if self.lengths is not None:
            lengths = self.lengths
            return lambda: rng.choice(lengths)
        prompts, outputs = parse_lengths(SHORT_PROMPTS, rng), parse_lengths(SHORT_OUTPUTS, rng)
        return lambda: (next(prompts), next(outputs))


def parse_workload(text: str, max_prompt_tokens: int, max_output_tokens: int) -> Workload:
    """``short:2,4`` or ``azure_code.csv:0.3/1:0.2,0.4``. Raises ValueError for what is not of that
    form, and for a trace that cannot be read."""
    source, _, factors = text.rpartition(":")[0].partition(":")
    try:
        rates_rps = tuple(map(float, text.rpartition(":")[2].split(",")))
        of_prompts, of_outputs = map(float, factors.split("/")) if source != SHORT else (1.0, 1.0)
    except ValueError as error:
        raise ValueError(f"workload {text!r}: expected {WORKLOAD_HELP}") from error
    if not all(number > 0 for number in (of_prompts, of_outputs, *rates_rps)):
        raise ValueError(f"workload {text!r}: factors and rates must be above 0")
    if source == SHORT:
        return Workload(name=SHORT, rates_rps=rates_rps, lengths=None)
    lengths = [
        (
            scaled_length(each.prompt_tokens, of_prompts, 1, max_prompt_tokens),
            scaled_length(each.output_tokens, of_outputs, 1, max_output_tokens),
        )
        for each in read_trace(Path(source))
    ]
    return Workload(name=Path(source).stem, rates_rps=rates_rps, lengths=lengths)
