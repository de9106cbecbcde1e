"""Linear layers through the CPU's own matrix kernels, with their weights packed once.

torch's linear packs a weight again in every call, and on some CPUs takes a slow way. T packed
tokens; sizes in features: O out, I in.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pdray.engine.few_rows import MAX_ROWS, FewRows
from pdray.kvcache.host_memory import map_host_memory

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
        self._few_rows = FewRows.of(self._kernel_weight, linear.weight.detach())
        self._output: OutputBuffer | None = None

    def reuse_output(self) -> None:
        """From then on a result is good until the next call only. For an output layer: its
        results are so large that fresh memory costs a quarter of the product's time."""
        self._output = OutputBuffer(self.weight.dtype)

    def forward(self, input_TI: torch.Tensor) -> torch.Tensor:
        num_outputs, num_inputs = self.weight.shape
        num_rows = input_TI.numel() // num_inputs
        if num_rows == 0:  # the kernels want a row
            return input_TI.new_empty(*input_TI.shape[:-1], num_outputs)
        if self._few_rows is not None and (num_rows <= MAX_ROWS or self._output is not None):
            shape = (*input_TI.shape[:-1], num_outputs)
            out_TO = input_TI.new_empty(shape) if self._output is None else self._output.of(shape)
            self._few_rows.multiply(input_TI.contiguous(), num_rows, self.bias, out_TO)
            return out_TO
        product_TO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input_TI, self._kernel_weight, self.bias, "none", [], ""
        )
        return product_TO


class OutputBuffer:
    """Memory for one layer's results, as large as the largest so far."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._values = torch.empty(0, dtype=dtype)

    def of(self, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape)
        if size > len(self._values):
            memory = map_host_memory(size * self._values.itemsize)
            self._values = torch.frombuffer(memory, dtype=self._values.dtype)
        return self._values[:size].view(shape)


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
