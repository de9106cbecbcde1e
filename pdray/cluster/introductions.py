"""Has every two workers that may need each other meet before either gets a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ray.exceptions import RayError

from pdray.core.placement import WorkerAddress
from pdray.core.request import WorkerId
from pdray.core.snapshot import Role, WorkerInfo

from .handles import WorkerHandle

logger = logging.getLogger(__name__)

_RETRY_S = 10.0
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class _Guest:
    info: WorkerInfo
    handle: WorkerHandle


class Introductions:
    """``on_met(one, other, failure)`` is told how each meeting went. Two that could not meet try
    again from time to time, for as long as both live."""

    def __init__(self, on_met: Callable[[WorkerId, WorkerId, str | None], None]) -> None:
        self._on_met = on_met
        self._guests: dict[WorkerId, _Guest] = {}
        self._retries: set[asyncio.Task[None]] = set()

    async def introduce(self, info: WorkerInfo, handle: WorkerHandle) -> None:
        """A worker has started: returns once it has met, or failed to meet, all others."""
        newcomer = _Guest(info, handle)
        others = [other for other in self._guests.values() if need_each_other(info, other.info)]
        # Known before it has met anybody: who starts meanwhile meets it.
        self._guests[info.worker_id] = newcomer
        dialled = [other for other in others if dials(info, other.info)]
        dialling = [other for other in others if other not in dialled]
        meetings = [self._meet(newcomer, dialled)] if dialled else []
        meetings += [self._meet(other, [newcomer]) for other in dialling]
        await asyncio.gather(*meetings)

    def addresses(self) -> list[WorkerAddress]:
        """Of all workers that have started, the oldest first."""
        return [guest.info.address for guest in self._guests.values()]

    def forget(self, worker_id: WorkerId) -> None:
        self._guests.pop(worker_id, None)

    async def _meet(self, dialer: _Guest, others: list[_Guest]) -> None:
        dialer_id = dialer.info.worker_id
        failures = await self._failures(dialer, others)
        for other in others:
            other_id = other.info.worker_id
            if self._guests.get(other_id) is not other or dialer_id not in self._guests:
                continue
            failure = failures.get(other_id)
            self._on_met(dialer_id, other_id, failure)
            if failure is not None:
                logger.warning("%s and %s can't work together: %s", dialer_id, other_id, failure)
                retry = asyncio.get_running_loop().create_task(self._meet_later(dialer, other))
                self._retries.add(retry)
                retry.add_done_callback(self._retries.discard)

    async def _failures(self, dialer: _Guest, others: list[_Guest]) -> dict[WorkerId, str]:
        addresses = [other.info.address for other in others]
        try:
            return await asyncio.wait_for(dialer.handle.meet.remote(addresses), _TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            failure = f"{dialer.info.worker_id} does not answer: {type(error).__name__}"
            return {other.info.worker_id: failure for other in others}

    async def _meet_later(self, dialer: _Guest, other: _Guest) -> None:
        await asyncio.sleep(_RETRY_S)
        if all(self._guests.get(each.info.worker_id) is each for each in (dialer, other)):
            await self._meet(dialer, [other])


def need_each_other(one: WorkerInfo, other: WorkerInfo) -> bool:
    """KV moves from prefill to decode and back, and between decode workers; a prefill worker has
    nothing that another one would ask for first."""
    return Role.DECODE in (one.role | other.role)


def dials(one: WorkerInfo, other: WorkerInfo) -> bool:
    """Whether ``one`` dials: a prefill worker does, as it is the one that makes offers; else
    either may."""
    return Role.PREFILL in one.role or Role.PREFILL not in other.role
