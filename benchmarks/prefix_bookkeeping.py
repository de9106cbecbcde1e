"""What a prefix cache costs beside the model: hashing prompts, looking them up, and naming the
blocks that decodes fill."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.greedy import greedy_sequence
from benchmarks.stopwatch import Stopwatch
from pdray.engine.config import EngineConfig
from pdray.engine.engine import Engine
from pdray.engine.sequence import Sequence

BLOCK_SIZE = 16
NUM_DECODE_STEPS = 3 * BLOCK_SIZE
"""So that every sequence fills as many blocks as it does in the long run."""
NUM_REPEATS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCost:
    """Seconds for one prompt of so many tokens: its hashes, and its look-up where nothing and
    where all of it is in the cache."""

    num_tokens: int
    hash_s: float
    miss_s: float
    hit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCost:
    """Seconds of a mean decode step, of what the prefix cache does in it, and of what it does in
    the step in which every sequence fills a block."""

    batch_size: int
    step_s: float
    naming_s: float
    naming_in_full_step_s: float

    @property
    def share(self) -> float:
        return self.naming_s / self.step_s


def load_engine(model: Path, dtype: str, num_threads: int, max_tokens: int) -> Engine:
    return Engine.load(
        model,
        EngineConfig(
            block_size=BLOCK_SIZE,
            kv_cache_bytes=2 << 30,
            max_tokens_per_step=1024,
            max_batch_size=32,
            max_model_len=max_tokens + 2 * BLOCK_SIZE,
            attention_backend="auto",
            device="cpu",
            dtype=dtype,
            num_threads=num_threads,
            tensor_parallel=1,
        ),
    )


def cost_of_prompt(engine: Engine, num_tokens: int, vocab_size: int) -> PromptCost:
    """Computes the prompt once, so that it is in the cache."""
    cache = engine.prefix_cache
    rng = random.Random(num_tokens)
    prompt = random_tokens(rng, num_tokens, vocab_size)

    def hashed(prompt: tuple[int, ...]) -> Sequence:
        sequence = greedy_sequence(prompt, 1)
        cache.hash(sequence)
        return sequence

    miss_s = least_seconds(lambda: hashed(prompt), cache.find)
    run(engine, [greedy_sequence(prompt, 1)])
    assert cache.find(hashed(prompt)).num_computed_tokens, "the prompt is not in the cache"
    return PromptCost(
        num_tokens=num_tokens,
        hash_s=least_seconds(lambda: greedy_sequence(prompt, 1), cache.hash),
        miss_s=miss_s,
        hit_s=least_seconds(lambda: hashed(prompt), cache.find),
    )


def cost_of_decode(engine: Engine, batch_size: int, context: int, vocab_size: int) -> DecodeCost:
    """Watches the engine's prefix cache from here on."""
    stopwatch = Stopwatch(["naming"])
    stopwatch.watch("naming", engine.prefix_cache, "name_new")
    stopwatch.watch("naming", engine.prefix_cache, "keep")
    rng = random.Random(batch_size)
    sequences = [
        greedy_sequence(random_tokens(rng, context, vocab_size), NUM_DECODE_STEPS + 1, str(number))
        for number in range(batch_size)
    ]
    steps_s, naming_s = run(engine, sequences, lambda: stopwatch.seconds["naming"])
    return DecodeCost(
        batch_size=batch_size,
        step_s=statistics.mean(steps_s),
        naming_s=statistics.mean(naming_s),
        naming_in_full_step_s=max(naming_s),
    )


def run(
    engine: Engine, sequences: list[Sequence], clock: Callable[[], float] = time.perf_counter
) -> tuple[list[float], list[float]]:
    """To the end. Of the steps in which all of them decode: the seconds, and by how much the
    clock went on."""
    for sequence in sequences:
        engine.add(sequence)
    steps_s: list[float] = []
    clock_s: list[float] = []
    while engine.wait_for_work(0):
        before = clock()
        step = engine.step()
        if step.num_decode_tokens == len(sequences):
            steps_s.append(step.step_s)
            clock_s.append(clock() - before)
    return steps_s, clock_s


def least_seconds(make: Callable[[], Sequence], action: Callable[[Sequence], object]) -> float:
    """The best of some: all else is other work of the machine."""
    seconds = []
    for _ in range(NUM_REPEATS):
        sequence = make()
        started_at = time.perf_counter()
        action(sequence)
        seconds.append(time.perf_counter() - started_at)
    return min(seconds)


def random_tokens(rng: random.Random, count: int, vocab_size: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, vocab_size) for _ in range(count))
