"""Prompts of a wanted length that say nothing and share no prefix."""

from __future__ import annotations

import random

# Short and common, so that most tokenizers have each as one token with its leading space.
_TEXT = """the of and to in is was for that on as with by he at from his it an were are which
this also be had one or first their its new after but who not they have her two she been other
when there all during into school time may years more most only over city some world would
where later up such used many can state about national out known university united then made
people team between part season year three while under now game day no being old against high
water day life house war family company head music second group number"""
WORDS = _TEXT.split()


def make_prompt(
    source: str, num_tokens: int, vocab_size: int, rng: random.Random
) -> str | tuple[int, ...]:
    """``words``: as many random words, so about as many tokens (the server's usage says how
    many). ``token-ids``: exactly as many random ids, the first 1000 (special ones) left out."""
    if source == "token-ids":
        return tuple(rng.randrange(1000, vocab_size) for _ in range(num_tokens))
    return " ".join(rng.choices(WORDS, k=num_tokens))
