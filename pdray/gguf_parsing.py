"""Has transformers parse a GGUF file once, and fast.

It parses the metadata anew for a config and for the weights. The parser steps through a vocabulary
with several slices of a ``numpy.memmap`` for every word, and the names of all tensors are listed
anew for every module of the model. For a vocabulary of 262,144 it all makes loading six times as
long.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

_ARRAY_HEAD = struct.Struct("<IQ")
_STRING_LENGTH = struct.Struct("<Q")


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """For as long as it lasts, whoever opens a GGUF file gets the same reader, and whoever asks
    for the names of its tensors the same map. Raises ImportError without the package gguf."""
    import gguf

    class ArrayReader(gguf.GGUFReader):
        """Its data are a plain array; the values of its arrays are found in one pass."""

        @property  # type: ignore[override]
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            """The field's bytes, its parts, which of those are values, and its types."""
            if raw_type == gguf.GGUFValueType.ARRAY and self.byte_order == "I":
                item_type, count = _ARRAY_HEAD.unpack_from(self._data.data, orig_offs)
                start = orig_offs + _ARRAY_HEAD.size
                dtype = self.gguf_scalar_to_np.get(item_type)
                items: list[object] | None = None
                if item_type == gguf.GGUFValueType.STRING:
                    items, end = read_strings(self._data, start, count)
                elif dtype is not None:
                    items, end = read_scalars(self._data, start, count, np.dtype(dtype))
                if items is not None:
                    types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(item_type)]
                    return end - orig_offs, items, list(range(count)), types
            return super()._get_field_parts(orig_offs, raw_type)

    replaced = {
        "GGUFReader": functools.cache(ArrayReader),
        "get_tensor_name_map": functools.cache(gguf.get_tensor_name_map),
    }
    plain = {name: getattr(gguf, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(gguf, name, value)
        yield
    finally:
        for name, value in plain.items():
            setattr(gguf, name, value)


def read_strings(data: np.ndarray, start: int, count: int) -> tuple[list[object], int]:
    """Their bytes, and where they end. Raises struct.error past the end of the file."""
    buffer = data.data
    strings: list[object] = []
    for _ in range(count):
        begin = start + _STRING_LENGTH.size
        end = begin + _STRING_LENGTH.unpack_from(buffer, start)[0]
        strings.append(buffer[begin:end])
        start = end
    return strings, start


def read_scalars(
    data: np.ndarray, start: int, count: int, dtype: np.dtype
) -> tuple[list[object], int]:
    """Arrays of one number each, and where they end. Raises ValueError past the end of the file."""
    numbers = np.frombuffer(data, dtype, count, start)
    return list(numbers.reshape(-1, 1)), start + numbers.nbytes
