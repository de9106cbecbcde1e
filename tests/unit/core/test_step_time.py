"""Step times: the counts of work against counting them one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.core.step_time import StepTime, StepWork

STEP_TIME = StepTime(
    base_s=1.0,
    prefill_token_s=0.1,
    prefill_pair_s=0.01,
    decode_s=0.2,
    context_token_s=0.002,
    prefill_base_s=0.5,
)


@given(start=st.integers(0, 50), num_tokens=st.integers(0, 50))
def test_a_chunk_attends_to_all_before_it_and_itself(start: int, num_tokens: int) -> None:
    work = StepWork().with_chunk(start, num_tokens)
    positions = range(start, start + num_tokens)
    assert work.num_prefill_tokens == num_tokens
    assert work.num_prefill_pairs == sum(position + 1 for position in positions)


@given(start=st.integers(0, 50), sizes=st.lists(st.integers(1, 20), max_size=5))
def test_chunks_of_a_prompt_are_as_much_work_as_all_of_it(start: int, sizes: list[int]) -> None:
    work, end = StepWork(), start
    for size in sizes:
        work, end = work.with_chunk(end, size), end + size
    assert work == StepWork().with_chunk(start, end - start)


def test_a_step_takes_its_base_and_all_that_is_in_it() -> None:
    work = StepWork().with_chunk(2, 3).with_decode(100).with_decode(50)
    assert (
        STEP_TIME.step_s(work) == 1.0 + 0.5 + 0.1 * 3 + 0.01 * (3 + 4 + 5) + 0.2 * 2 + 0.002 * 150
    )


@given(start=st.integers(0, 5000), num_tokens=st.integers(0, 5000), num_decodes=st.integers(0, 9))
def test_a_step_is_its_decodes_and_what_a_chunk_adds(
    start: int, num_tokens: int, num_decodes: int
) -> None:
    decodes = StepWork(num_decodes=num_decodes, num_context_tokens=70 * num_decodes)
    decodes_s = STEP_TIME.decodes_s(num_decodes, 70 * num_decodes)
    assert decodes_s == pytest.approx(STEP_TIME.step_s(decodes))
    together_s = STEP_TIME.step_s(decodes.with_chunk(start, num_tokens))
    added_s = STEP_TIME.chunk_s(start, num_tokens) + (0.5 if num_tokens else 0.0)
    assert decodes_s + added_s == pytest.approx(together_s)
