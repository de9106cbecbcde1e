"""Step times: the counts of work against counting them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdray.core.step_time import StepTime, StepWork

STEP_TIME = StepTime(
    base_s=1.0, prefill_token_s=0.1, prefill_pair_s=0.01, decode_s=0.2, context_token_s=0.002
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
    assert STEP_TIME.step_s(work) == 1.0 + 0.1 * 3 + 0.01 * (3 + 4 + 5) + 0.2 * 2 + 0.002 * 150


def test_a_prompt_pays_the_base_for_every_chunk_and_nothing_for_what_is_cached() -> None:
    alone = STEP_TIME.prompt_s(100, num_cached_tokens=0, max_chunk_tokens=100)
    chunked = STEP_TIME.prompt_s(100, num_cached_tokens=0, max_chunk_tokens=30)
    cached = STEP_TIME.prompt_s(100, num_cached_tokens=90, max_chunk_tokens=30)
    assert alone == STEP_TIME.step_s(StepWork().with_chunk(0, 100))
    assert chunked == alone + 3 * STEP_TIME.base_s
    assert cached == STEP_TIME.step_s(StepWork().with_chunk(90, 10))
