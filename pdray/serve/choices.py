"""Several streams read as one, no faster than their reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

from pdray.serve.ending import end_tasks

T = TypeVar("T")


async def read_together(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[list[tuple[int, T]], None]:
    """Yields what is ready, as (index of the stream, item), until every stream has ended.

    Asks no stream for more than one item ahead. The first error ends all; closing closes all.
    """
    if len(streams) == 1:
        try:
            async for item in streams[0]:
                yield [(0, item)]
        finally:
            await streams[0].aclose()
        return
    reads = {asyncio.ensure_future(anext(each)): index for index, each in enumerate(streams)}
    try:
        while reads:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            bundle: list[tuple[int, T]] = []
            for read in sorted(done, key=reads.__getitem__):
                index = reads.pop(read)
                if isinstance(read.exception(), StopAsyncIteration):
                    continue
                bundle.append((index, read.result()))
            if bundle:
                yield bundle
            for index, _item in bundle:
                reads[asyncio.ensure_future(anext(streams[index]))] = index
    finally:
        try:
            await end_tasks(reads)
        finally:
            for stream in streams:
                await stream.aclose()
