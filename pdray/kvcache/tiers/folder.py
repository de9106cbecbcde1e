"""A folder for each worker's disk tier, found again by whoever comes after it."""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path

from pdray.core.errors import ConfigError


class TierFolder:
    """``root/<layout>/<n>`` with the lowest n that no living process has: workers never share
    one, and a worker that is started again takes up what the last one left. Those of other
    layouts stay as they are."""

    def __init__(self, root: Path, layout_digest: str) -> None:
        """Raises ConfigError where a folder cannot be made there."""
        parent = root / layout_digest[:16]
        try:
            for number in itertools.count():
                self.path = parent / str(number)
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if _is_locked(lock):
                    self._lock = lock
                    return
                os.close(lock)
        except OSError as error:
            raise ConfigError(
                f"tiers.disk_path: {str(root)!r} is no folder that can be written: {error}"
            ) from error

    @property
    def file(self) -> Path:
        return self.path / "blocks"

    def close(self) -> None:
        """Others may take it."""
        os.close(self._lock)


def _is_locked(lock: int) -> bool:
    try:
        # The system gives it back when the process ends, however it does.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
