"""A model's folder whose files are memory of this process, for loaders that want a folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pdray.core.errors import TransferError
from pdray.engine.checkpoint import open_checkpoint


class MemoryFiles:
    """They go with the process. The folder has links to them, which its children can follow."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pdray-model-")
        self._others: dict[Path, int] = {}
        self._weights: dict[Path, int] = {}

    @property
    def model_path(self) -> Path:
        """The folder, or its GGUF file. Raises ConfigError where the model is not whole."""
        return open_checkpoint(Path(self._folder.name)).path

    def add(self, name: str, num_bytes: int, *, is_weights: bool) -> int:
        """A file descriptor to write it through. Raises TransferError for no plain name."""
        link = Path(self._folder.name) / name
        if link.name != name or link.parent != Path(self._folder.name) or link.is_symlink():
            raise TransferError(f"a model's file cannot be called {name!r}")
        descriptor = os.memfd_create(name)
        os.ftruncate(descriptor, num_bytes)
        link.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        (self._weights if is_weights else self._others)[link] = descriptor
        return descriptor

    def release_weights(self) -> None:
        """Once they are loaded; what the model has mapped of them stays."""
        _remove(self._weights)

    def close(self) -> None:
        """Nobody wants any of it."""
        _remove(self._weights)
        _remove(self._others)
        self._folder.cleanup()


def _remove(files: dict[Path, int]) -> None:
    while files:
        link, descriptor = files.popitem()
        link.unlink(missing_ok=True)
        os.close(descriptor)


def write_all(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
