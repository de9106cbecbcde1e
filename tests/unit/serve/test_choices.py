from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from pdray.core.errors import WorkerLostError
from pdray.serve.choices import read_together
from pdray.serve.ending import end_tasks
from pdray.serve.stream import run_until_disconnect


class Stream:
    """Items by hand; says how many were taken and whether it was closed."""

    def __init__(self, *items: int | Exception) -> None:
        self.items = items
        self.num_taken = 0
        self.is_closed = False

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if isinstance(item, Exception):
                    raise item
                self.num_taken += 1
                yield item
        finally:
            self.is_closed = True


@pytest.mark.parametrize("lengths", [(3,), (3, 1), (0, 2, 4), (0, 0)])
async def test_every_item_of_every_stream_comes_once_and_in_order(
    lengths: tuple[int, ...],
) -> None:
    streams = [Stream(*range(length)) for length in lengths]
    seen: dict[int, list[int]] = {index: [] for index in range(len(lengths))}
    async for bundle in read_together([stream.read() for stream in streams]):
        for index, item in bundle:
            seen[index].append(item)
    assert seen == {index: [*range(length)] for index, length in enumerate(lengths)}
    assert all(stream.is_closed for stream in streams)


@pytest.mark.parametrize("count", [1, 3])
async def test_no_stream_is_read_ahead_of_the_reader(count: int) -> None:
    streams = [Stream(*range(10)) for _ in range(count)]
    merged = read_together([stream.read() for stream in streams])
    await anext(merged)
    for _ in range(20):
        await asyncio.sleep(0)
    assert all(stream.num_taken <= 1 for stream in streams)
    await merged.aclose()
    assert all(stream.is_closed for stream in streams if stream.num_taken)


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_ends_all_streams(count: int) -> None:
    streams = [Stream(*range(100)) for _ in range(count - 1)]
    streams.append(Stream(1, WorkerLostError("gone")))
    merged = read_together([stream.read() for stream in streams])
    with pytest.raises(WorkerLostError, match="gone"):
        [bundle async for bundle in merged]
    assert all(stream.is_closed for stream in streams)
    assert all(stream.num_taken < 100 for stream in streams)


@pytest.mark.parametrize("by_client", [False, True])
async def test_a_second_cancel_does_not_strike_the_clean_up_after_the_first(
    by_client: bool,
) -> None:
    """A client's leaving is seen by the server, which cancels us, and by ourselves."""
    left, steps = asyncio.Event(), 0

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        nonlocal steps
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)
                steps += 1

    answering = asyncio.create_task(run_until_disconnect(receive, work()))
    await asyncio.sleep(0)
    if by_client:
        left.set()
    else:
        answering.cancel()
    while steps == 0:
        await asyncio.sleep(0)
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert steps == 10


async def test_every_stream_is_closed_although_the_reader_is_cancelled_twice() -> None:
    streams = [Stream(*range(10)) for _ in range(4)]

    async def read() -> None:
        merged = read_together([stream.read() for stream in streams])
        try:
            await anext(merged)
            await asyncio.Event().wait()
        finally:
            await merged.aclose()

    reading = asyncio.create_task(read())
    while not any(stream.num_taken for stream in streams):
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert all(stream.is_closed for stream in streams if stream.num_taken)


async def test_ended_tasks_are_over() -> None:
    tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(3)]
    await end_tasks(tasks)
    assert all(task.cancelled() for task in tasks)
