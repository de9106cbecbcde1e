"""Memory for one pass over the logits, kept between steps."""

from __future__ import annotations

import torch


class Scratch:
    """On a CPU, a fresh 32 x 262,144 matrix costs more than what is computed in it: the kernel
    hands its pages out one by one."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def matrix(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Float32 of undefined values; good until the next call."""
        if self._memory.numel() < shape.numel() or self._memory.device != device:
            self._memory = torch.empty(shape.numel(), device=device)
        return self._memory[: shape.numel()].view(shape)
