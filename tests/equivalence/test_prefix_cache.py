"""What is found in the prefix cache changes nothing but the work: tokens equal transformers'."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdray.core.request import Request
from pdray.engine.engine import Engine
from tests.engine_driver import (
    engine_config,
    random_prompts,
    request_of,
    run_until_idle,
    sampling_params,
    sequence_of,
)
from tests.equivalence.families import VOCAB_SIZE, save_family
from tests.equivalence.handoff import hand_off
from tests.equivalence.reference import Reference, assert_equal_up_to_ties

NUM_TOKENS = 12


@pytest.fixture(params=["llama", "gemma3_groups", "mistral_sliding"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_family(request.param, tmp_path)
    return tmp_path


def run(engine: Engine, request: Request) -> tuple[list[int], int]:
    """Its output, and how many of its tokens were cached."""
    sequence = sequence_of(request)
    engine.add(sequence)
    run_until_idle(engine)
    assert sequence.num_cached_tokens is not None
    return sequence.output_token_ids, sequence.num_cached_tokens


def greedy(prompt: list[int], name: str, cache_salt: str | None = None) -> Request:
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    return request_of(prompt, sampling, request_id=name, cache_salt=cache_salt)


def test_prompts_that_share_a_beginning_say_what_they_say_alone(folder: Path) -> None:
    engine = Engine.load(folder, engine_config())
    reference = Reference(folder)
    (shared,) = random_prompts([70], vocab_size=VOCAB_SIZE)
    tails = random_prompts([1, 9, 33], vocab_size=VOCAB_SIZE, seed=1)
    found = []
    for number, tail in enumerate([*tails, tails[-1]]):
        tokens, num_cached = run(engine, greedy(shared + tail, f"r{number}"))
        expected = reference.generate(shared + tail, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        found.append(num_cached)
    assert found[0] == 0
    assert found[2] >= 64  # where the second parted from the first
    assert found[3] >= 96  # every full block of the same prompt


def test_the_next_turn_of_a_conversation_finds_the_turn_before(folder: Path) -> None:
    engine = Engine.load(folder, engine_config())
    (prompt,) = random_prompts([50], vocab_size=VOCAB_SIZE)
    answer, _ = run(engine, greedy(prompt, "first"))
    turn = prompt + answer + random_prompts([7], vocab_size=VOCAB_SIZE, seed=2)[0]
    tokens, num_cached = run(engine, greedy(turn, "second"))
    assert num_cached >= 48
    expected = Reference(folder).generate(turn, NUM_TOKENS)
    assert_equal_up_to_ties(folder.name, [tokens], [expected])


def test_a_handoff_moves_only_what_the_reader_lacks(folder: Path) -> None:
    source, target = (Engine.load(folder, engine_config()) for _ in range(2))
    reference = Reference(folder)
    (shared,) = random_prompts([70], vocab_size=VOCAB_SIZE)
    tails = random_prompts([4, 9, 60], vocab_size=VOCAB_SIZE, seed=1)
    num_moved = []
    for number, tail in enumerate([*tails, tails[-1]]):
        moved: list[int] = []
        (tokens,) = hand_off(source, target, [greedy(shared + tail, f"r{number}")], moved)
        expected = reference.generate(shared + tail, NUM_TOKENS)
        assert_equal_up_to_ties(folder.name, [tokens], [expected])
        num_moved.append(len(moved))
    num_groups = len(target.layout.groups)
    assert num_moved[1] == num_groups  # all but the last block is the same: 4 * 16 of 79 tokens
    assert num_moved[3] == num_groups


def test_another_salt_finds_nothing(folder: Path) -> None:
    engine = Engine.load(folder, engine_config())
    (prompt,) = random_prompts([64], vocab_size=VOCAB_SIZE)
    first, _ = run(engine, greedy(prompt, "a", "tenant"))
    other, num_cached_of_other = run(engine, greedy(prompt, "b", "another"))
    again, num_cached_again = run(engine, greedy(prompt, "c", "tenant"))
    assert (num_cached_of_other, num_cached_again) == (0, len(prompt) - 1)
    assert first == other == again
