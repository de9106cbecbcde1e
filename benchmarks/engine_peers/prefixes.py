"""What is asked of an engine with a prefix cache, and the loop that asks it. Only the standard
library, as in cases.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

KINDS = ("cold", "full", "parting", "half", "half cold")
"""A prompt that shares nothing; the same again; the first that parts from it in the middle; the
next that does; half a prompt that shares nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """To the first token, and how many of the prompt's tokens were in the cache."""

    seconds: float
    cached_tokens: int


class PrefixPeer(Protocol):
    """One engine with one model and its prefix cache, ready to run."""

    def first_token(self, prompt: list[int]) -> Answer: ...


def make_prompts(num_tokens: int, repeat: int, vocab_size: int) -> Iterator[tuple[str, list[int]]]:
    """Each with its kind, in the order in which they are asked."""
    rng = random.Random(f"{num_tokens}, {repeat}")

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, vocab_size) for _ in range(count)]

    prompt = tokens(num_tokens)
    half = num_tokens // 2
    yield "cold", prompt
    yield "full", prompt
    for kind in ("parting", "half"):
        yield kind, prompt[:half] + tokens(num_tokens - half)
    yield "half cold", tokens(num_tokens - half)


def measure_prefixes(
    peer: PrefixPeer,
    lengths: list[int],
    repeats: int,
    vocab_size: int,
    report: Callable[[int, str, Answer], None],
) -> None:
    """Reports every answer, after some that nobody counts."""
    for _, prompt in make_prompts(lengths[0], -1, vocab_size):
        peer.first_token(prompt)
    for num_tokens in lengths:
        for repeat in range(repeats):
            for kind, prompt in make_prompts(num_tokens, repeat, vocab_size):
                report(num_tokens, kind, peer.first_token(prompt))
