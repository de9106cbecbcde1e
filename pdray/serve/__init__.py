"""The HTTP edge: OpenAI's API as a Ray Serve application. ``build_app`` is loaded when asked
for, so that the parts without Ray and FastAPI can be imported without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdray.serve.app import build_app

__all__ = ["build_app"]


def __getattr__(name: str) -> object:
    if name == "build_app":
        from pdray.serve.app import build_app

        return build_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
