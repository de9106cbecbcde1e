from __future__ import annotations

from pathlib import Path

from pdray.engine import openmp
from pdray.engine.engine import Engine
from pdray.engine.model import load_model
from tests.engine_driver import engine_config, generate, random_prompts, request_of


def test_an_engine_that_was_warmed_up_compiles_no_more_and_gives_the_same_tokens(
    tiny_model_path: Path,
) -> None:
    config = engine_config()
    warm = Engine.load(tiny_model_path, config)
    compiled = list(openmp.launch.signatures)
    requests = [
        request_of(prompt, request_id=str(number))
        for number, prompt in enumerate(random_prompts([1, 40, 100], vocab_size=256))
    ]
    tokens = generate(warm, requests)
    assert openmp.launch.signatures == compiled
    cold = Engine(load_model(tiny_model_path, dtype=config.dtype, device="cpu"), config)
    assert generate(cold, requests) == tokens
    warm.pool.check_integrity()
    assert warm.num_unaccounted_blocks == 0
