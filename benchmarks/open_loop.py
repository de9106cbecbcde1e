"""Sends at the times of a schedule, whatever the answers do.

A closed loop sends the next request when an answer is in, so a slow server is asked less and
looks better than it is. Here a slow server only makes more requests be in flight.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

WATCH_EVERY_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Generic[Answer]):
    """``send_lags_s``: how late each request was sent. ``loop_lags_s``: how late the client
    woke from short sleeps, so how late it may have read. Large ones mean that the client, not
    the server, was measured."""

    started_at: float
    answers: tuple[Answer, ...]
    send_lags_s: tuple[float, ...]
    loop_lags_s: tuple[float, ...]


async def run_open_loop(
    schedule: Sequence[tuple[float, Item]],
    send: Callable[[Item], Awaitable[Answer]],
    report: Callable[[int, int], None],
) -> Run[Answer]:
    """Sends every item at its time (seconds from now, in order), waits for all answers, and
    returns them in the schedule's order. ``report`` is told the numbers sent and answered."""
    started_at = time.monotonic()
    send_lags_s: list[float] = []
    loop_lags_s: list[float] = []
    num_answered = 0

    async def send_one(due_at: float, item: Item) -> Answer:
        nonlocal num_answered
        send_lags_s.append(time.monotonic() - due_at)
        answer = await send(item)
        num_answered += 1
        return answer

    async def watch() -> None:
        while True:
            due_at = time.monotonic() + WATCH_EVERY_S
            await asyncio.sleep(WATCH_EVERY_S)
            loop_lags_s.append(time.monotonic() - due_at)
            report(len(send_lags_s), num_answered)

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for due_s, item in schedule:
                due_at = started_at + due_s
                await asyncio.sleep(max(0.0, due_at - time.monotonic()))
                tasks.append(group.create_task(send_one(due_at, item)))
    finally:
        watcher.cancel()
    report(len(send_lags_s), num_answered)
    return Run(
        started_at=started_at,
        answers=tuple(task.result() for task in tasks),
        send_lags_s=tuple(send_lags_s),
        loop_lags_s=tuple(loop_lags_s),
    )
