"""Ends tasks without leaving half of their clean-up undone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


async def end_tasks(tasks: Iterable[asyncio.Future[T]]) -> None:
    """Cancels the tasks and returns when all are over; what they raise is theirs to tell.

    Cancelled meanwhile, it still waits, and then raises: a client's leaving is seen by Serve
    and by us, and the second cancel would strike the clean-up after the first.
    """
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    cancelled: asyncio.CancelledError | None = None
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancelled = error
            pending = {task for task in pending if not task.done()}
    if cancelled is not None:
        raise cancelled
