"""A checkpoint's files: which they are, and whether they are whole. Reads headers, no weights."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pdray.core.errors import ConfigError
from pdray.engine.safetensors_header import StoredTensor, read_header
from pdray.kvcache.layout import DTYPE_BYTES

_PLAIN_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In the order in which transformers looks for them: each alone, then its index of shards."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``path`` is a Hugging Face folder, or a GGUF file. ``tensors`` is empty unless the weights
    are in safetensors."""

    path: Path
    weight_files: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...] = ()

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @property
    def num_bytes(self) -> int:
        """On the disk."""
        return sum(file.stat().st_size for file in self.weight_files)

    def num_bytes_as(self, dtype: str) -> int:
        """In memory once loaded in ``dtype``, where quantised tensors stay as they are. Without
        safetensors' headers as on the disk, of a GGUF file as if it held 4 bits a weight."""
        if self.is_gguf:
            return self.num_bytes * 2 * DTYPE_BYTES[dtype]
        if not self.tensors:
            return self.num_bytes
        return sum(
            tensor.num_elements * DTYPE_BYTES[dtype]
            if tensor.dtype in _PLAIN_DTYPES
            else tensor.num_bytes
            for tensor in self.tensors
        )

    def plain_dtype(self) -> str | None:
        """Of most numbers that are not quantised; None where no header tells."""
        num_elements: Counter[str] = Counter()
        for tensor in self.tensors:
            if tensor.dtype in _PLAIN_DTYPES:
                num_elements[_PLAIN_DTYPES[tensor.dtype]] += tensor.num_elements
        return max(num_elements, key=num_elements.__getitem__) if num_elements else None

    def read_ahead(self) -> None:
        """Has the system read the files in their order while the model is built, without waiting
        for it; but no files that would push each other out of memory."""
        if self.num_bytes > memory_bytes() // 2:
            return
        for path in self.weight_files:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def open_checkpoint(path: Path) -> Checkpoint:
    """``path``: a folder, or a GGUF file. Raises ConfigError, which names the file, where one is
    missing, cut off or cannot be read."""
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    if (path / "adapter_config.json").exists():
        raise _error(
            path,
            "is a LoRA adapter (it has an adapter_config.json), and pdray serves whole models; "
            "accepted: the folder of a model that the adapter was merged into",
        )
    files = _weight_files(path)
    if not files and (path / "config.json").exists() and not any(path.glob("*.gguf")):
        raise _error(path, f"the folder has no weights ({' or '.join(_WEIGHTS)}, or a .gguf)")
    if not files and any(path.glob("*.gguf")):
        return _gguf(_only_gguf(path))
    if not (path / "config.json").exists():
        raise _error(path, "the folder has no config.json")
    _read_json(path, path / "config.json")
    tensors: list[StoredTensor] = []
    for file in files:
        if file.suffix == ".safetensors":
            try:
                tensors += read_header(file)
            except (OSError, ValueError) as error:
                raise _error(path, str(error)) from error
    return Checkpoint(path, files, tuple(tensors))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return (folder / name,)
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(folder, index)
    return ()


def _shards(folder: Path, index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _error(folder, f"{index.name} is no good: it has no weight_map")
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise _error(folder, f"the folder has no {', '.join(missing)}, which {index.name} names")
    return tuple(folder / name for name in names)


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise _error(folder, f"the folder has {names}; accepted: the path of one of them")
    return files[0]


def _gguf(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise _error(path, "is no GGUF file: it does not begin with GGUF")
    return Checkpoint(path, (path,))


def _read_json(folder: Path, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _error(folder, f"{file.name} is no good: {error}") from error
    if not isinstance(content, dict):
        raise _error(folder, f"{file.name} is no good: it should hold a mapping")
    return cast("dict[str, Any]", content)


def _error(path: Path, what: str) -> ConfigError:
    return ConfigError(f"model = {str(path)!r}: {what}")
