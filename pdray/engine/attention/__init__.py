"""Attention backends by name; a backend's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pdray.core.registry import Registry

if TYPE_CHECKING:
    from pdray.engine.attention.base import AttentionBackend

ATTENTION: Registry[Callable[[str, str], AttentionBackend]] = Registry("attention backend")
"""Each makes its backend for a device and a dtype."""


@ATTENTION.register("auto")
def _auto(device: str, dtype: str) -> AttentionBackend:
    is_compiled = device == "cpu" and dtype in ("float32", "bfloat16")
    return ATTENTION.get("cpu" if is_compiled else "sdpa")(device, dtype)


@ATTENTION.register("sdpa")
def _sdpa(device: str, dtype: str) -> AttentionBackend:
    from pdray.engine.attention.sdpa import SdpaBackend

    return SdpaBackend()


@ATTENTION.register("cpu")
def _cpu(device: str, dtype: str) -> AttentionBackend:
    from pdray.engine.attention.cpu import CpuBackend

    return CpuBackend(device, dtype)
