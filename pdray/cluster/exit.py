"""How an actor ends its own process, from anywhere in it, and for certain."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import ray

_FORCE_AFTER_S = 10.0


def exit_this_actor() -> NoReturn:
    """For the end of an actor's async method: its caller sees ActorDiedError.

    Ray waits for the calls that are still running; a thread that never returns must not keep
    the process, and what it holds, for ever.
    """
    force_exit_after(_FORCE_AFTER_S)
    ray.actor.exit_actor()
    raise AssertionError("unreachable: exit_actor raises")


def force_exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()
