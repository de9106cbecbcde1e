"""A model as files: which ones a worker has loaded, for one that starts elsewhere. Loads no torch.

It is the files that are lent, and not the weights in memory: those are packed and joined for one
CPU or GPU by the time they serve, and the plain numbers are gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdray.engine.checkpoint import open_checkpoint

_OTHER_WEIGHTS = {".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors"}
_MAX_SMALL_BYTES = 64 << 20
"""A tokenizer's are a tenth of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """``version`` tells whether it is still the same file with the same content."""

    path: Path
    num_bytes: int
    is_weights: bool
    version: tuple[int, int, int]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_unchanged(self) -> bool:
        try:
            return _version(self.path.stat()) == self.version
        except OSError:
            return False


def list_model_files(path: Path) -> tuple[ModelFile, ...]:
    """``path``: a Hugging Face folder, or a GGUF file. Those that loading reads, the small ones
    first. Raises ConfigError where they are not whole."""
    checkpoint = open_checkpoint(path)
    weights = set(checkpoint.weight_files)
    beside = [] if checkpoint.is_gguf else sorted(checkpoint.path.iterdir())
    small = [each for each in beside if each not in weights and _is_small(each)]
    return tuple(_model_file(each, each in weights) for each in [*small, *checkpoint.weight_files])


def weight_bytes(files: Sequence[ModelFile]) -> int:
    return sum(file.num_bytes for file in files if file.is_weights)


def _is_small(path: Path) -> bool:
    return (
        path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _OTHER_WEIGHTS
        and path.stat().st_size <= _MAX_SMALL_BYTES
    )


def _model_file(path: Path, is_weights: bool) -> ModelFile:
    status = path.stat()
    return ModelFile(
        path=path, num_bytes=status.st_size, is_weights=is_weights, version=_version(status)
    )


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
