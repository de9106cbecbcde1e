"""Whether a device is here, and what ``dtype: auto`` is on it."""

from __future__ import annotations

from pathlib import Path

import torch

from pdray.core.errors import ConfigError
from pdray.engine.checkpoint import Checkpoint

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""In /proc/cpuinfo; the last one is Arm's."""


def auto_dtype(checkpoint: Checkpoint, device: str) -> str:
    """The checkpoint's own dtype where the device computes well in it, and else what it does
    compute well in. Raises ConfigError where there is no such device."""
    check_device(device)
    plain = checkpoint.plain_dtype()
    if torch.device(device).type == "cpu":
        return auto_dtype_on_cpu(plain, has_bfloat16=cpu_has_bfloat16())
    has_bfloat16 = torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)
    return auto_dtype_on_gpu(plain, has_bfloat16=has_bfloat16)


def auto_dtype_on_cpu(plain: str | None, *, has_bfloat16: bool) -> str:
    """No CPU computes well in float16. ``plain`` None: the numbers come out of a GGUF."""
    return "float32" if plain == "float32" or not has_bfloat16 else "bfloat16"


def auto_dtype_on_gpu(plain: str | None, *, has_bfloat16: bool) -> str:
    """In float32 a GPU has a fraction of its speed."""
    return "float16" if plain == "float16" or not has_bfloat16 else "bfloat16"


def check_device(device: str) -> None:
    """Raises ConfigError where it is not here."""
    index = torch.device(device).index or 0
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ConfigError(f"device = {device!r}: {torch.cuda.device_count()} CUDA devices are here")


def cpu_has_bfloat16() -> bool:
    """Arithmetic in it: the kernels alone also run where it is converted at every step."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bool(_BFLOAT16_FLAGS & set(Path("/proc/cpuinfo").read_text().split()))
