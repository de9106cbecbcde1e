from __future__ import annotations

import pytest

from pdray.core.step_time import StepTime, StepWork
from pdray.core.step_time_fit import StepTimeFit
from pdray.engine.step_budget import FIRST_GUESS_TOKENS, FLOOR_TOKENS, StepBudget
from tests.fitted import fit_of

TIMES = StepTime(
    base_s=0.02, prefill_token_s=0.001, prefill_pair_s=2e-7, decode_s=0.005, context_token_s=1e-6
)
FIT = fit_of(TIMES)
DECODES = StepWork(num_decodes=4, num_context_tokens=4000)  # 44 ms


def budget_of(
    itl_s: float | None, fit: StepTimeFit = FIT, *, max_tokens: int = 512, max_batch: int = 32
) -> StepBudget:
    return StepBudget(fit, max_tokens_per_step=max_tokens, max_batch_size=max_batch, itl_s=itl_s)


@pytest.mark.parametrize("start", [0, 100, 1900])
@pytest.mark.parametrize("itl_s", [0.07, 0.1, 0.25])
def test_a_chunk_takes_the_rest_of_the_step_and_no_more(itl_s: float, start: int) -> None:
    num_tokens = budget_of(itl_s).chunk_tokens(DECODES, start, 512)
    assert num_tokens % FLOOR_TOKENS == 0
    assert TIMES.step_s(DECODES.with_chunk(start, num_tokens)) <= itl_s
    assert TIMES.step_s(DECODES.with_chunk(start, num_tokens + FLOOR_TOKENS)) > itl_s * 0.99


def test_chunk_within_is_what_trying_every_size_finds() -> None:
    for start in (0, 7, 500, 3000):
        for seconds in (0.0, 0.0455, 0.06, 0.2, 0.5, 9.0):
            sizes = range(1, 300)
            fitting = [n for n in sizes if TIMES.step_s(DECODES.with_chunk(start, n)) <= seconds]
            expected = max(fitting, default=0)
            assert TIMES.chunk_within(seconds, DECODES, start, 299) == expected


def test_prompts_have_a_floor_in_every_step_but_only_the_first_of_them() -> None:
    budget = budget_of(0.03)  # the decodes alone take longer
    assert budget.chunk_tokens(DECODES, 0, 512) == FLOOR_TOKENS
    assert budget.chunk_tokens(DECODES, 0, 5) == 5
    assert budget.chunk_tokens(DECODES.with_chunk(0, 16), 0, 512) == 0


def test_without_decodes_or_a_target_tokens_alone_count() -> None:
    assert budget_of(0.03).chunk_tokens(StepWork(), 0, 512) == 512
    assert budget_of(None).chunk_tokens(DECODES, 0, 512) == 512


def test_before_prompts_are_measured_one_guess_a_step() -> None:
    budget = budget_of(0.1, StepTimeFit())
    assert budget.chunk_tokens(DECODES, 0, 512) == FIRST_GUESS_TOKENS
    assert budget.chunk_tokens(DECODES.with_chunk(0, FIRST_GUESS_TOKENS), 0, 384) == 0


def test_seats_are_as_many_as_keep_to_the_target_with_a_floor_of_a_prompt() -> None:
    # 20 ms, 16 ms for the floor, 6 ms for each with its thousand tokens.
    assert budget_of(0.101).num_seats(DECODES) == 10
    assert budget_of(0.101, max_batch=8).num_seats(DECODES) == 8


def test_there_is_no_cap_where_nothing_is_known_or_not_even_one_keeps_to_the_target() -> None:
    assert budget_of(0.101, StepTimeFit()).num_seats(DECODES) == 32
    assert budget_of(0.101).num_seats(StepWork()) == 32
    assert budget_of(0.03).num_seats(DECODES) == 32
    assert budget_of(None).num_seats(DECODES) == 32
