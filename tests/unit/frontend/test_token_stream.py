from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdray.core.errors import SlowReaderError, WorkerLostError
from pdray.core.logprobs import TokenLogprobs
from pdray.core.request import FinishReason, TokenChunk
from pdray.frontend.token_stream import TokenDelta, TokenStream


def logprobs_of(*token_ids: int) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(token_id=each, logprob=-1.0, rank=2, top_token_ids=(), top_logprobs=())
        for each in token_ids
    )


def chunk(
    index: int,
    *token_ids: int,
    attempt: int = 1,
    end: bool = False,
    num_cached_tokens: int | None = None,
) -> TokenChunk:
    return TokenChunk(
        request_id="r",
        attempt=attempt,
        index=index,
        token_ids=token_ids,
        finish_reason=FinishReason.STOP if end else None,
        decode_worker_id=None,
        num_cached_tokens=num_cached_tokens,
    )


def stream(limit: int = 1000) -> TokenStream:
    return TokenStream(attempt=1, next_index=0, max_unread_tokens=limit)


async def read_all(tokens: TokenStream) -> list[int]:
    read: list[int] = []
    while True:
        delta = await tokens.read()
        read += delta.token_ids
        if delta.finish_reason is not None:
            return read


async def test_tokens_that_wait_are_read_together() -> None:
    tokens = stream()
    tokens.push(chunk(0, 5))
    tokens.push(chunk(1, 6, 7))
    assert await tokens.read() == TokenDelta(
        token_ids=(5, 6, 7), finish_reason=None, num_cached_tokens=None
    )


async def test_logprobs_stay_with_their_tokens_whatever_overtakes() -> None:
    tokens = stream()
    late = replace(chunk(1, 6, 7, end=True), logprobs=logprobs_of(6, 7))
    first = replace(chunk(0, 5), logprobs=logprobs_of(5), prompt_logprobs=logprobs_of(1, 2))
    for each in (late, first, late, first):
        tokens.push(each)
    assert await tokens.read() == TokenDelta(
        token_ids=(5, 6, 7),
        finish_reason=FinishReason.STOP,
        logprobs=logprobs_of(5, 6, 7),
        prompt_logprobs=logprobs_of(1, 2),
    )


async def test_prompt_logprobs_are_read_once_and_may_be_none_at_all() -> None:
    tokens = stream()
    tokens.push(replace(chunk(0, 5), prompt_logprobs=()))
    assert (await tokens.read()).prompt_logprobs == ()
    tokens.push(chunk(1, 6))
    assert (await tokens.read()).prompt_logprobs is None


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    num_doubled=st.integers(0, 5),
)
def test_any_order_and_doubled_chunks_read_as_the_one_sequence(
    sizes: list[int], order: object, num_doubled: int
) -> None:
    chunks, index = [], 0
    for number, size in enumerate(sizes):
        ids = range(100 + index, 100 + index + size)
        chunks.append(chunk(index, *ids, end=number == len(sizes) - 1))
        index += size
    chunks += chunks[:num_doubled]
    order.shuffle(chunks)  # type: ignore[attr-defined]

    async def run() -> list[int]:
        tokens = stream()
        num_new = sum(tokens.push(each) for each in chunks)
        assert num_new == index
        return await read_all(tokens)

    assert asyncio.run(run()) == list(range(100, 100 + index))


async def test_chunks_of_another_attempt_are_ignored() -> None:
    tokens = stream()
    assert tokens.push(chunk(0, 5, attempt=2)) == 0
    assert tokens.push(chunk(0, 6)) == 1


async def test_a_failure_comes_after_the_tokens_before_it() -> None:
    tokens = stream()
    tokens.push(chunk(0, 5))
    tokens.fail(WorkerLostError("gone"))
    assert (await tokens.read()).token_ids == (5,)
    with pytest.raises(WorkerLostError, match="gone"):
        await tokens.read()


async def test_a_reader_that_waits_is_woken_by_a_failure() -> None:
    tokens = stream()
    reading = asyncio.create_task(tokens.read())
    await asyncio.sleep(0)
    tokens.fail(WorkerLostError("gone"))
    with pytest.raises(WorkerLostError):
        await reading


async def test_a_reader_that_falls_too_far_behind_is_cut() -> None:
    tokens = stream(limit=3)
    tokens.push(chunk(0, 1, 2, 3))
    assert not tokens.is_cut
    tokens.push(chunk(3, 4))
    assert tokens.is_cut
    assert tokens.push(chunk(4, 5)) == 0
    with pytest.raises(SlowReaderError, match=r"4 tokens .*limit 3"):
        await read_all(tokens)


async def test_the_last_tokens_are_read_however_many_come_at_once() -> None:
    tokens = stream(limit=3)
    tokens.push(chunk(1, 2, 3, 4, 5, end=True))
    reading = asyncio.create_task(read_all(tokens))
    await asyncio.sleep(0)
    tokens.push(chunk(0, 1))
    assert await asyncio.wait_for(reading, 10) == [1, 2, 3, 4, 5]


async def test_a_last_chunk_without_tokens_ends_the_stream() -> None:
    tokens = stream()
    tokens.push(chunk(0, 5))
    tokens.push(chunk(1, end=True))
    assert await read_all(tokens) == [5]


async def test_what_was_cached_is_said_with_the_first_token_and_known_from_then_on() -> None:
    tokens = stream()
    tokens.push(chunk(1, 6))
    tokens.push(chunk(0, 5, num_cached_tokens=32))
    assert (await tokens.read()).num_cached_tokens == 32
    tokens.push(chunk(2, 7, end=True))
    assert (await tokens.read()).num_cached_tokens == 32


async def test_another_attempt_goes_on_behind_what_has_come() -> None:
    tokens = stream()
    tokens.push(chunk(0, 5, num_cached_tokens=3))
    tokens.push(chunk(2, 7))
    tokens.begin_attempt()
    tokens.push(chunk(1, 99))
    assert tokens.push(chunk(1, 6, attempt=2, num_cached_tokens=16)) == 1
    assert await tokens.read() == TokenDelta(
        token_ids=(5, 6), finish_reason=None, num_cached_tokens=3
    )
    assert tokens.token_ids == [6]
