"""A step's numbers to the device, without waiting for what the device does meanwhile."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = (
    NDArray[np.int64]
    | NDArray[np.int32]
    | NDArray[np.bool_]
    | NDArray[np.float64]
    | NDArray[np.float32]
    | torch.Tensor
)
"""A tensor lies on the device already."""


def upload(numbers: Numbers, device: torch.device) -> torch.Tensor:
    """On a CPU it shares the array's memory."""
    return _ready_tensor(numbers, device).to(device, non_blocking=True)


def refill(target: torch.Tensor, numbers: Numbers) -> None:
    """In the order of the device's work: what was launched before still sees the old numbers."""
    target.copy_(_ready_tensor(numbers, target.device), non_blocking=True)


def _ready_tensor(numbers: Numbers, device: torch.device) -> torch.Tensor:
    if isinstance(numbers, torch.Tensor):
        return numbers
    # From other memory than pinned, a copy waits until the device is done with all before it.
    # The allocator keeps pinned memory until the copy is over.
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory() if device.type == "cuda" else tensor
