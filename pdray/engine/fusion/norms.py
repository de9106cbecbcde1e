"""RMS norms: known by what they do to numbers, whatever their class is called."""

from __future__ import annotations

import torch
from torch import nn

from pdray.engine.fusion.base import FusedKernels, Norm

_PROBE_ROWS = 3


def find_norm(module: nn.Module) -> Norm | None:
    """What the module computes, where that is an RMS norm with a weight, stored as it is or less
    one; None for anything else."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if len(parameters) != 1 or weight is None or weight.dim() != 1 or not isinstance(eps, float):
        return None
    for added in (0.0, 1.0):
        norm = Norm(weight.detach().float() + added, eps)
        if _computes(module, norm, weight):
            return norm
    return None


def _computes(module: nn.Module, norm: Norm, weight: torch.Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, _PROBE_ROWS, len(weight), generator=generator).to(weight)
    # Small ones show the eps.
    sample[:, -1] *= norm.eps**0.5
    scale = torch.rsqrt(sample.float().pow(2).mean(-1, keepdim=True) + norm.eps)
    expected = sample.float() * scale * norm.weight
    tolerance = 4 * torch.finfo(weight.dtype).eps
    return torch.allclose(module(sample).float(), expected, rtol=tolerance, atol=tolerance)


class FusedNorm(nn.Module):
    """Takes the place of an RMS norm."""

    def __init__(self, norm: Norm, kernels: FusedKernels) -> None:
        super().__init__()
        self._norm = norm
        self._kernels = kernels

    def forward(self, input_D: torch.Tensor) -> torch.Tensor:
        return self._kernels.rms_norm(input_D.contiguous(), self._norm)
