"""A step's integers to the device, without waiting for what the device does meanwhile."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = NDArray[np.int64] | NDArray[np.int32] | NDArray[np.bool_]


def upload(array: Numbers, device: torch.device) -> torch.Tensor:
    """On a CPU it shares the array's memory."""
    return _host_tensor(array, device).to(device, non_blocking=True)


def refill(target: torch.Tensor, array: Numbers) -> None:
    """In the order of the device's work: what was launched before still sees the old numbers."""
    target.copy_(_host_tensor(array, target.device), non_blocking=True)


def _host_tensor(array: Numbers, device: torch.device) -> torch.Tensor:
    # From other memory than pinned, a copy waits until the device is done with all before it.
    # The allocator keeps pinned memory until the copy is over.
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
