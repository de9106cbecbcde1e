"""What choosing the next tokens costs, from logits on: a batch for each kind of request.

The logits are random: normal, with a few hundred likely tokens in each row, as a model has.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.machine import cpu_name
from pdray.core.request import Request, SamplingParams
from pdray.engine.grammar import GrammarState
from pdray.engine.sampling.sampler import Sampler
from pdray.engine.sequence import Sequence

NEUTRAL = SamplingParams(
    max_tokens=10_000,
    temperature=1.0,
    top_k=None,
    top_p=1.0,
    seed=0,
    stop_token_ids=(),
    ignore_eos=True,
)
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 50, top_p 0.95": {"top_k": 50, "top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "greedy, penalties": {"temperature": 0.0, **PENALTIES},
    "top_p 0.95, penalties": {"top_p": 0.95, **PENALTIES},
    "greedy, logprobs 5": {"temperature": 0.0, "logprobs": 5},
}
GRAMMARS = {
    "one token in a thousand": 0.001,
    "all but one in a hundred": 0.99,
}
"""As in the structure of JSON, and as in its strings: the share of tokens that may come."""
NUM_PROMPT_TOKENS = 1000
NUM_OUTPUT_TOKENS = 300
NUM_WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--vocab-size", type=int, default=262_144)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"{cpu_name()}, {args.device}, {args.threads} threads; batch {args.batch_size}, "
        f"vocabulary {args.vocab_size}, {NUM_PROMPT_TOKENS} + {NUM_OUTPUT_TOKENS} tokens each"
    )
    logits_SV = random_logits(args.batch_size, args.vocab_size).to(args.device)
    for name, changes in CASES.items():
        sampling = replace(NEUTRAL, **changes)  # type: ignore[arg-type]
        report(name, time_of_step(logits_SV, sampling, args.steps))
    for temperature in (0.0, 1.0):
        sampling = replace(NEUTRAL, temperature=temperature)
        for name, share in GRAMMARS.items():
            masks_SW = random_masks(args.batch_size, args.vocab_size, share)
            seconds = time_of_step(logits_SV, sampling, args.steps, masks_SW)
            report(f"temperature {temperature:g}, {name}", seconds)


def report(name: str, seconds: float) -> None:
    print(f"{name:42} {seconds * 1e3:8.2f} ms")


def random_logits(num_rows: int, vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits_SV = torch.randn(num_rows, vocab_size, generator=generator) * 2
    likely = torch.randint(vocab_size, (num_rows, 200), generator=generator)
    gains = torch.rand(num_rows, 200, generator=generator) * 25
    return logits_SV.scatter_add_(1, likely, gains)


def random_masks(num_rows: int, vocab_size: int, share: float) -> NDArray[np.int32]:
    """A bit for each token, set with that probability."""
    bits = np.random.default_rng(0).random((num_rows, -(-vocab_size // 32) * 32)) < share
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def time_of_step(
    logits_SV: torch.Tensor,
    sampling: SamplingParams,
    num_steps: int,
    masks_SW: NDArray[np.int32] | None = None,
) -> float:
    """Median seconds from logits on the device, and masks that are there, to tokens in Python."""
    rng = random.Random(0)
    vocab_size = logits_SV.shape[1]
    sequences = [
        sequence_of(rng, vocab_size, replace(sampling, seed=i)) for i in range(len(logits_SV))
    ]
    for sequence, mask in zip(sequences, () if masks_SW is None else masks_SW, strict=False):
        sequence.grammar_state = GrammarState(mask=mask)
    sampler = Sampler([1], logits_SV.device.type)
    times: list[float] = []
    for _ in range(NUM_WARM_UP + num_steps):
        logits = logits_SV.clone()
        started = time.perf_counter()
        tokens = sampler.sample(logits, sequences).read()
        times.append(time.perf_counter() - started)
        for sequence, token in zip(sequences, tokens, strict=True):
            assert token.token_id is not None
            sequence.output_token_ids.append(token.token_id)
    return statistics.median(times[NUM_WARM_UP:])


def sequence_of(rng: random.Random, vocab_size: int, sampling: SamplingParams) -> Sequence:
    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocab_size) for _ in range(count))

    request = Request(
        request_id=str(sampling.seed),
        prompt_token_ids=tokens(NUM_PROMPT_TOKENS),
        output_token_ids=tokens(NUM_OUTPUT_TOKENS),
        sampling=sampling,
    )
    return Sequence.from_request(request, 1, is_lent=False)


if __name__ == "__main__":
    main()
