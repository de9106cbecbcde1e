"""``cached_tokens`` is the truth: it and what workers computed make the prompt, in all modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.applications import MODES, running
from tests.local_cluster import random_prompts


@pytest.mark.parametrize("mode", MODES)
async def test_what_was_cached_and_what_was_computed_are_the_prompt(
    mode: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    one, other = random_prompts([150, 130])
    async with running(mode, tiny_model_path, tmp_path) as application:
        for prompt, is_cached in ((one, False), (one, True), (one[:100] + other, True)):
            for is_streamed in (False, True):
                before = application.num_computed()
                salted = prompt if is_streamed else [*prompt, 7]
                num_cached = await application.ask(salted, is_streamed=is_streamed)
                num_computed = application.num_computed() - before
                assert num_cached + num_computed == len(salted)
                assert (num_cached >= 96) or not (is_cached or is_streamed)


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_choice_computes_is_not_cached_for_the_others_of_its_answer(
    mode: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    (prompt,) = random_prompts([200])
    async with running(mode, tiny_model_path, tmp_path) as application:
        assert await application.ask(prompt, n=3) == 0
        again = await application.ask(prompt, n=3)
        assert 192 <= again < 200
