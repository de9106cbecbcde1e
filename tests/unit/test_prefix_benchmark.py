"""The benchmark of the prefix cache, small: what its prompts share, and one run of it all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prefix_cache
from benchmarks.engine_peers.prefixes import KINDS, Answer, make_prompts, measure_prefixes
from benchmarks.prefix_bookkeeping import cost_of_decode, cost_of_prompt, load_engine
from tests.tiny_model import NUM_TOKENS


def num_shared(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def test_prompts_share_what_their_kind_says_and_nothing_else() -> None:
    prompts = dict(make_prompts(101, 0, 1000))
    assert tuple(prompts) == KINDS
    assert prompts["full"] == prompts["cold"]
    assert num_shared(prompts["parting"], prompts["cold"]) == 50
    assert num_shared(prompts["half"], prompts["cold"]) == 50
    assert num_shared(prompts["half"], prompts["parting"]) == 50
    assert [len(prompts[kind]) for kind in KINDS] == [101, 101, 101, 101, 51]
    for other in (make_prompts(101, 1, 1000), make_prompts(202, 0, 1000)):
        assert all(num_shared(prompts["cold"], prompt) == 0 for _, prompt in other)
    assert num_shared(prompts["cold"], prompts["half cold"]) == 0


class Recorder:
    """Answers by counting."""

    def __init__(self) -> None:
        self.num_asked = 0

    def first_token(self, prompt: list[int]) -> Answer:
        self.num_asked += 1
        return Answer(seconds=1.0, cached_tokens=self.num_asked)


def test_the_first_prompts_are_not_counted() -> None:
    reported: list[tuple[int, str, int]] = []

    def report(num_tokens: int, kind: str, answer: Answer) -> None:
        reported.append((num_tokens, kind, answer.cached_tokens))

    measure_prefixes(Recorder(), [8, 16], 2, 1000, report)
    expected = [(length, kind) for length in (8, 16) for _ in range(2) for kind in KINDS]
    assert [(length, kind) for length, kind, _ in reported] == expected
    assert [number for *_, number in reported] == list(range(6, 26))


def test_costs_are_of_work_that_was_done(tiny_model_path: Path) -> None:
    engine = load_engine(tiny_model_path, "float32", 1, 128)
    cost = cost_of_prompt(engine, 96, NUM_TOKENS)
    assert min(cost.hash_s, cost.miss_s, cost.hit_s) > 0
    names_before = len(engine.pool.index)
    decode = cost_of_decode(engine, 3, 20, NUM_TOKENS)
    # The prompts fill a block each, the decodes three more.
    assert len(engine.pool.index) - names_before == 3 * (1 + 3)
    assert 0 < decode.naming_s <= decode.naming_in_full_step_s
    assert 0 < decode.share < 1


@pytest.mark.slow
def test_a_run_finds_half_and_whole_prompts(tiny_model_path: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_model_path), "--prompt-tokens", "64", "100"]
    arguments += ["--repeats", "1", "--batch-sizes", "2", "--context", "40"]
    assert prefix_cache.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("prefix_cache-*.json")
    found = json.loads(path.read_text())
    cached = [each["cached_tokens"] for each in found["answers"]["pdray"]]
    # Of a whole hit the last token is computed again.
    assert cached == [0, 63, 32, 32, 0, 0, 96, 48, 48, 0]
    assert [cost["num_tokens"] for cost in found["prompts"]] == [64, 100]
    assert [cost["batch_size"] for cost in found["decodes"]] == [2]
