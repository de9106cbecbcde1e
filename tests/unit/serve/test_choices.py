from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from pdray.core.errors import WorkerLostError
from pdray.serve.choices import read_together


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
