"""Brings an application's actors up, and down again, from a driver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from pdray.config import PdrayConfig
from pdray.core.clock import WallClock
from pdray.core.errors import UnavailableError

from .controller import get_or_make_controller
from .messages import ControllerStatus
from .names import (
    find_controller,
    find_worker,
    is_controller,
    kill_actor,
    living_actors,
)

logger = logging.getLogger(__name__)

_POLL_S = 0.25
_ANSWER_TIMEOUT_S = 10.0
_HOLD_S = 5.0
_SHUTDOWN_TIMEOUT_S = 30.0
_GONE_TIMEOUT_S = 60.0


def up(config: PdrayConfig, progress: Callable[[str], None] | None = None) -> None:
    """Makes the controller and waits until every pool is ready; ray must be initialised.

    Raises UnavailableError with the reason where a worker can't be started or is unlike
    the others, or when ``serve.startup_timeout_s`` is over. A frontend must follow within
    ``controller.unused_exit_s``, or the application ends itself: see ``in_use``.
    """
    asyncio.run(_bring_up(config, progress or (lambda text: None)))


@contextlib.contextmanager
def in_use(config: PdrayConfig) -> Iterator[None]:
    """Keeps a running application from ending itself before it has a frontend."""
    ends = threading.Event()
    claimed_at = time.time()

    def hold() -> None:
        while not ends.wait(min(_HOLD_S, config.controller.unused_exit_s / 4)):
            asyncio.run(_hold(config, claimed_at))

    thread = threading.Thread(target=hold, name="application-in-use", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def down(config: PdrayConfig) -> None:
    """Ends all controllers and workers of this application, whatever their generation, and
    waits until they are gone. Its frontends must have gone before: they would make another
    controller. Raises UnavailableError where an actor remains."""
    asyncio.run(_bring_down(config.serve.application))


async def _bring_up(config: PdrayConfig, progress: Callable[[str], None]) -> None:
    clock = WallClock()
    claimed_at = time.time()
    deadline = clock.now() + config.serve.startup_timeout_s
    told = ""
    while True:
        status = await _hold(config, claimed_at)
        if status is not None and status.hopeless is not None:
            raise UnavailableError(status.hopeless)
        if status is not None and status.is_ready:
            return
        missing = "the controller" if status is None else status.missing
        if clock.now() > deadline:
            timeout_s = config.serve.startup_timeout_s
            raise UnavailableError(f"not ready after {timeout_s:g} s, missing: {missing}")
        if missing != told:
            progress(f"waiting for {missing}")
            told = missing
        await asyncio.sleep(_POLL_S)


async def _hold(config: PdrayConfig, claimed_at: float) -> ControllerStatus | None:
    """Keeps the application in use; None where its controller does not answer now."""
    try:
        controller = await asyncio.to_thread(get_or_make_controller, config, claimed_at)
        await asyncio.wait_for(controller.hold.remote(claimed_at), _ANSWER_TIMEOUT_S)
        return await asyncio.wait_for(controller.status.remote(), _ANSWER_TIMEOUT_S)
    except (RayError, TimeoutError) as error:
        logger.info("no answer of the controller: %s", error)
        return None


async def _bring_down(application: str) -> None:
    clock = WallClock()
    started_at = clock.now()
    while names := await living_actors(application):
        await asyncio.gather(*(_shut_down(name) for name in names if is_controller(name)))
        if clock.now() - started_at > _SHUTDOWN_TIMEOUT_S or not any(map(is_controller, names)):
            await asyncio.gather(*(_kill(name) for name in names))
        if clock.now() - started_at > _GONE_TIMEOUT_S:
            raise UnavailableError(f"still there after {_GONE_TIMEOUT_S:g} s: {', '.join(names)}")
        await asyncio.sleep(_POLL_S)


async def _shut_down(name: str) -> None:
    controller = await find_controller(name)
    if controller is not None:
        with contextlib.suppress(RayError, TimeoutError):  # it dies, that is the answer
            await asyncio.wait_for(controller.shutdown.remote(), _SHUTDOWN_TIMEOUT_S)


async def _kill(name: str) -> None:
    actor = await (find_controller(name) if is_controller(name) else find_worker(name))
    if actor is not None:
        await kill_actor(actor)
