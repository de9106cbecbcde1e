"""Times what ships, from outside: puts itself round functions and methods."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable


class Stopwatch:
    """Seconds in each part."""

    def __init__(self, parts: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)

    def watch(self, part: str, owner: object, name: str) -> None:
        """Calls of the module's function, or the object's method, count from here on."""
        function: Callable[..., object] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: object, **kwargs: object) -> object:
            started_at = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.perf_counter() - started_at

        setattr(owner, name, timed)
