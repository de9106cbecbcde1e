"""Triton is an extra: without it nothing fails but what asks for it, which says so."""

from __future__ import annotations

import sys

import pytest
import torch

from pdray.core.errors import ConfigError
from pdray.engine.attention import ATTENTION
from pdray.engine.attention.sdpa import SdpaBackend
from pdray.engine.fusion import find_kernels


@pytest.fixture(autouse=True)
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)


def test_the_backend_that_needs_it_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"attention_backend = 'triton'.*accepted: 'sdpa'"):
        ATTENTION.get("triton")("cuda", "bfloat16")


def test_auto_on_a_gpu_does_without_it() -> None:
    assert isinstance(ATTENTION.get("auto")("cuda", "bfloat16"), SdpaBackend)
    assert find_kernels(torch.device("cuda"), torch.bfloat16) is None
