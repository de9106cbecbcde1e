"""Unit tests run without Ray: whoever needs it belongs in tests/cluster."""

from __future__ import annotations

from typing import NoReturn

import pytest


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("a unit test started Ray")

    monkeypatch.setattr(ray, "init", refuse)
