"""Linear layers through the CPU's own matrix kernels, with their weights packed once.

torch's linear packs a weight again in every call, and on some CPUs takes a slow way. T packed
tokens; sizes in features: O out, I in.
"""

from __future__ import annotations

import torch
from torch import nn

# The packed form serves any number of rows. One made for a single row is read at half the speed.
_TYPICAL_ROWS = 16


class PackedLinear(nn.Module):
    """Takes the place of a ``nn.Linear``. The plain weight is freed unless others use it too: an
    output layer that is tied to its embedding is in memory twice from then on, as unpacked it
    would take up to twice the time of every decode step's largest product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        # Shape and dtype for whoever asks; the numbers are in the packed form only.
        self.weight = nn.Parameter(
            torch.empty_like(linear.weight, device="meta"), requires_grad=False
        )
        self._kernel_weight = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach(), _TYPICAL_ROWS
        )

    def forward(self, input_TI: torch.Tensor) -> torch.Tensor:
        if input_TI.numel() == 0:  # the kernels want a row
            return input_TI.new_empty(*input_TI.shape[:-1], self.weight.shape[0])
        out_TO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input_TI, self._kernel_weight, self.bias, "none", [], ""
        )
        return out_TO


def pack_linears(model: nn.Module) -> None:
    """Replaces every linear layer, by type; the plain weights are freed as it goes. Does nothing
    for a dtype that the CPU's kernels do not know."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and is_packable(child.weight):
                setattr(parent, name, PackedLinear(child))


def is_packable(weight: torch.Tensor) -> bool:
    """Whether the CPU's kernels know its dtype."""
    if weight.device.type != "cpu":
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if weight.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
