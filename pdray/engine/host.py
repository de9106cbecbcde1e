"""What an engine's process is told about the machine it runs on, before a model is loaded."""

from __future__ import annotations

import ctypes

import torch

from pdray.engine.config import EngineConfig

# Of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_HEAP_BYTES = 32 << 20
"""The most that glibc takes from its heap and not from the system."""
_KEPT_BYTES = 256 << 20


def prepare_host(config: EngineConfig) -> None:
    """Of the whole process."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if config.device == "cpu":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """A step's activations go back to the heap and not to the system, which would hand their
    pages out one by one again in the next layer: a twentieth of a prompt's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have heaps of their own
        mallopt(_M_MMAP_THRESHOLD, _MAX_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
