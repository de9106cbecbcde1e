"""Has transformers parse the metadata of a GGUF file once, and fast.

It parses the file anew for a config and for the weights; and the parser makes a slice for every
word of the vocabulary, which costs many times as much of a ``numpy.memmap`` as of an array. For a
vocabulary of 262,144 the two make loading five times as long.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """For as long as it lasts, whoever opens a GGUF file gets the same reader. Raises ImportError
    without the package gguf."""
    import gguf

    class ArrayReader(gguf.GGUFReader):
        @property  # type: ignore[override]
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)

    plain = gguf.GGUFReader
    setattr(gguf, "GGUFReader", functools.cache(ArrayReader))  # noqa: B010 - mypy: it is a type
    try:
        yield
    finally:
        setattr(gguf, "GGUFReader", plain)  # noqa: B010
