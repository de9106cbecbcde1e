"""The header of a safetensors file: what tensors it holds, and where. Reads no numbers."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library itself takes."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``dtype`` in safetensors' words: F32, BF16, F8_E4M3."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


def read_header(file: Path) -> list[StoredTensor]:
    """Raises ValueError, which says what is wrong, for a file that is cut off or is no
    safetensors file."""
    with file.open("rb") as opened:
        first = opened.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else None
        if length is None or length > _MAX_HEADER_BYTES:
            raise ValueError(f"{file.name} is no safetensors file, or is cut off")
        text = opened.read(length)
    size = file.stat().st_size
    if size < 8 + length:
        raise ValueError(f"{file.name} is cut off: {size} bytes are not even its header")
    tensors, num_bytes = _parse(text, file.name)
    if size != 8 + length + num_bytes:
        expected = 8 + length + num_bytes
        raise ValueError(f"{file.name} is cut off or damaged: {size} bytes for {expected}")
    return tensors


def _parse(text: bytes, name: str) -> tuple[list[StoredTensor], int]:
    """The tensors, and the bytes of all numbers."""
    try:
        entries = [entry for key, entry in json.loads(text).items() if key != "__metadata__"]
        spans = [(int(start), int(end)) for start, end in (e["data_offsets"] for e in entries)]
        tensors = [
            StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])), end - start)
            for entry, (start, end) in zip(entries, spans, strict=True)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} has a header that cannot be read: {error}") from error
    return tensors, max((end for _, end in spans), default=0)
