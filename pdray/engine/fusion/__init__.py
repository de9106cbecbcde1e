"""A model's layers with their small operations in few kernels; which kernels a device has."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pdray.engine.fusion.base import FusedKernels


def find_kernels(device: torch.device, dtype: torch.dtype) -> FusedKernels | None:
    """None where a device has none for the dtype, or Triton is not installed: transformers' own
    modules run then."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return None
        from pdray.engine.fusion.triton import TritonKernels

        return TritonKernels()
    if device.type != "cpu":
        return None
    from pdray.engine import openmp
    from pdray.engine.fusion.cpu import DTYPES, CpuKernels

    return CpuKernels(dtype) if openmp.is_available and dtype in DTYPES else None
