"""What ``dtype: auto`` is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdray.core.errors import ConfigError
from pdray.engine.checkpoint import open_checkpoint
from pdray.engine.device import (
    auto_dtype,
    auto_dtype_on_cpu,
    auto_dtype_on_gpu,
    check_device,
    cpu_has_bfloat16,
)


@pytest.mark.parametrize(
    ("plain", "with_bfloat16", "without"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        (None, "bfloat16", "float32"),
    ],
)
def test_on_a_cpu(plain: str | None, with_bfloat16: str, without: str) -> None:
    assert auto_dtype_on_cpu(plain, has_bfloat16=True) == with_bfloat16
    assert auto_dtype_on_cpu(plain, has_bfloat16=False) == without


@pytest.mark.parametrize(
    ("plain", "with_bfloat16", "without"),
    [
        ("float32", "bfloat16", "float16"),
        ("bfloat16", "bfloat16", "float16"),
        ("float16", "float16", "float16"),
        (None, "bfloat16", "float16"),
    ],
)
def test_on_a_gpu(plain: str | None, with_bfloat16: str, without: str) -> None:
    assert auto_dtype_on_gpu(plain, has_bfloat16=True) == with_bfloat16
    assert auto_dtype_on_gpu(plain, has_bfloat16=False) == without


def test_of_a_checkpoint_on_this_machine(tiny_model_path: Path, tmp_path: Path) -> None:
    assert auto_dtype(open_checkpoint(tiny_model_path), "cpu") == "float32"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    expected = "bfloat16" if cpu_has_bfloat16() else "float32"
    assert auto_dtype(open_checkpoint(tmp_path), "cpu") == expected


def test_a_device_that_is_not_here_is_refused() -> None:
    check_device("cpu")
    with pytest.raises(ConfigError, match=r"device = 'cuda:99': \d+ CUDA devices are here"):
        check_device("cuda:99")
