"""Requests that come at any time to an engine with blocks for the longest of them alone: each says
what it says where there are plenty, and ends in a number of steps that is known beforehand."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from pdray.core.request import Request
from pdray.engine.block_needs import max_sequence_tokens
from pdray.engine.engine import Engine
from pdray.engine.model import LoadedModel, load_model
from tests.engine_driver import engine_config, generate, request_of, sampling_params, sequence_of
from tests.equivalence.families import VOCAB_SIZE, save_family

pytestmark = pytest.mark.slow

NUM_REQUESTS = 24
MAX_TOKENS_PER_STEP = 48
MAX_BATCH_SIZE = 8
MIN_CHUNK_TOKENS = MAX_TOKENS_PER_STEP - (MAX_BATCH_SIZE - 1)
"""What decodes leave of a step to the oldest prompt."""


@pytest.fixture(scope="module", params=["llama", "gemma3_groups"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """One model whose layers see all, one with sliding windows too."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, folder)
    return load_model(folder, dtype="float32", device="cpu")


@dataclass(frozen=True, slots=True)
class Arrival:
    at_step: int
    request: Request


def random_arrivals(rng: random.Random) -> list[Arrival]:
    """Some go on from one beginning, and find it where it was not evicted."""
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(40)]
    arrivals: list[Arrival] = []
    for number in range(NUM_REQUESTS):
        own = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 50))]
        sampling = sampling_params(
            max_tokens=rng.randint(1, 70), temperature=rng.choice([0.0, 1.0]), seed=number
        )
        prompt = shared[: rng.choice([0, 16, 33])] + own
        request = request_of(prompt, sampling, request_id=str(number))
        arrivals.append(Arrival(rng.randint(0, 80), request))
    return arrivals


def num_tokens_of(arrival: Arrival) -> int:
    """In the end."""
    return arrival.request.num_prompt_tokens + arrival.request.sampling.max_tokens


def steps_alone(arrival: Arrival) -> int:
    """With all that it will ever say computed again at its end."""
    num_chunks = -(-num_tokens_of(arrival) // MIN_CHUNK_TOKENS)
    return num_chunks + arrival.request.sampling.max_tokens


def least_blocks(engine: Engine, num_tokens: int) -> int:
    """That hold one sequence of so many tokens at every moment."""

    def fits(num_blocks: int) -> bool:
        longest = max_sequence_tokens(
            engine.layout.groups,
            num_blocks=num_blocks,
            max_chunk=MAX_TOKENS_PER_STEP,
            block_size=engine.layout.block_size,
            limit=num_tokens,
        )
        return longest == num_tokens

    return next(filter(fits, itertools.count(1)))


@pytest.mark.parametrize("seed", range(4))
def test_few_blocks_change_no_token(loaded: LoadedModel, seed: int) -> None:
    arrivals = random_arrivals(random.Random(seed))
    roomy = Engine(loaded, engine_config(max_tokens_per_step=MAX_TOKENS_PER_STEP))
    num_blocks = least_blocks(roomy, max(map(num_tokens_of, arrivals)))
    engine = Engine(
        loaded,
        engine_config(
            kv_cache_bytes=num_blocks * roomy.layout.block_bytes,
            max_tokens_per_step=MAX_TOKENS_PER_STEP,
            max_batch_size=MAX_BATCH_SIZE,
        ),
    )
    sequences = [sequence_of(arrival.request) for arrival in arrivals]
    num_preemptions = 0
    last_at_step = max(arrival.at_step for arrival in arrivals)
    max_steps = last_at_step + NUM_REQUESTS * sum(map(steps_alone, arrivals))
    for at_step in range(max_steps):
        for arrival, sequence in zip(arrivals, sequences, strict=True):
            if arrival.at_step == at_step:
                engine.add(sequence)
        num_preemptions += engine.step().num_preemptions
        engine.pool.check_integrity()
        if at_step >= last_at_step and not engine.num_waiting + engine.num_running:
            break
    assert num_preemptions > 0
    assert engine.num_waiting + engine.num_running == 0, "some request starves"
    assert engine.pool.num_available_blocks == engine.pool.num_blocks
    alone = [generate(roomy, [arrival.request])[0] for arrival in arrivals]
    assert [sequence.output_token_ids for sequence in sequences] == alone
