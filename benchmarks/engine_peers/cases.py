"""What is asked of every engine, and the loop that asks it. Only the standard library: it also
runs in environments that have no pdray."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

NUM_DECODE_STEPS = 24
NUM_WARMUP_STEPS = 4
NUM_PREFILLS = 3
VOCAB_SIZE = 32_000
"""Token ids of the prompts lie below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``decode``: one token for each of ``batch`` sequences with ``tokens`` of context.
    ``prefill``: ``batch`` prompts of ``tokens`` tokens, to their first tokens."""

    phase: str
    batch: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.phase} {self.batch} x {self.tokens}"

    @property
    def num_tokens(self) -> int:
        """Of which tokens/s is told."""
        return self.batch if self.phase == "decode" else self.batch * self.tokens


CASES = (
    Case(phase="decode", batch=1, tokens=256),
    Case(phase="decode", batch=8, tokens=256),
    Case(phase="decode", batch=32, tokens=256),
    Case(phase="prefill", batch=1, tokens=1024),
    Case(phase="prefill", batch=4, tokens=1024),
)
MAX_BATCH = max(case.batch for case in CASES)
MAX_STEP_TOKENS = max(case.num_tokens for case in CASES)
MAX_MODEL_LEN = 2048


class Peer(Protocol):
    """One engine with one model, ready to run."""

    def decode_steps(self, prompts: list[list[int]], num_steps: int) -> list[float]:
        """Seconds of each decode step of all prompts as one batch, prefill left out."""

    def prefill(self, prompts: list[list[int]]) -> float:
        """Seconds until every prompt has its first token."""


def make_prompts(case: Case, seed: int) -> list[list[int]]:
    """For decode so short that the middle of the timed steps has the case's context."""
    length = case.tokens
    if case.phase == "decode":
        length -= NUM_WARMUP_STEPS + NUM_DECODE_STEPS // 2
    # No case repeats another's tokens, which would be hits in a prefix cache.
    rng = random.Random(f"{case.name}, {seed}")
    return [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for _ in range(case.batch)]


def measure(peer: Peer, cases: tuple[Case, ...], report: Callable[[str, float], None]) -> None:
    """Reports each case's median time."""
    for case in cases:
        if case.phase == "decode":
            steps = peer.decode_steps(make_prompts(case, 0), NUM_WARMUP_STEPS + NUM_DECODE_STEPS)
            seconds = statistics.median(steps[NUM_WARMUP_STEPS:])
        else:
            peer.prefill(make_prompts(case, 0))
            runs = [peer.prefill(make_prompts(case, 1 + number)) for number in range(NUM_PREFILLS)]
            seconds = statistics.median(runs)
        report(case.name, seconds)
