"""Attention backends by name; a backend's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pdray.core.registry import Registry

if TYPE_CHECKING:
    from pdray.engine.attention.base import AttentionBackend

ATTENTION: Registry[Callable[[], AttentionBackend]] = Registry("attention backend")


@ATTENTION.register("sdpa")
def _sdpa() -> AttentionBackend:
    from pdray.engine.attention.sdpa import SdpaBackend

    return SdpaBackend()
