"""Attention backends by name; a backend's module is imported when it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from pdray.core.errors import ConfigError
from pdray.core.registry import Registry

if TYPE_CHECKING:
    from pdray.engine.attention.base import AttentionBackend

ATTENTION: Registry[Callable[[str, str], AttentionBackend]] = Registry("attention backend")
"""Each makes its backend for a device and a dtype."""


@ATTENTION.register("auto")
def _auto(device: str, dtype: str) -> AttentionBackend:
    name = "sdpa"
    if device.startswith("cuda") and _has_triton():
        name = "triton"
    elif device == "cpu" and dtype in ("float32", "bfloat16"):
        from pdray.engine import openmp

        name = "cpu" if openmp.is_available else "sdpa"
    return ATTENTION.get(name)(device, dtype)


@ATTENTION.register("sdpa")
def _sdpa(device: str, dtype: str) -> AttentionBackend:
    from pdray.engine.attention.sdpa import SdpaBackend

    return SdpaBackend()


@ATTENTION.register("cpu")
def _cpu(device: str, dtype: str) -> AttentionBackend:
    from pdray.engine.attention.cpu import CpuBackend

    return CpuBackend(device, dtype)


@ATTENTION.register("triton")
def _triton(device: str, dtype: str) -> AttentionBackend:
    if not _has_triton():
        raise ConfigError(
            "attention_backend = 'triton': the package triton is not installed; accepted: 'sdpa', "
            "'auto', or installing pdray[gpu]"
        )
    from pdray.engine.attention.triton import TritonBackend

    return TritonBackend(device, dtype)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
