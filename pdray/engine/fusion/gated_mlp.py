"""MLPs of a gate: ``down(activation(gate(x)) * up(x))``, with gate and up as one product."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from pdray.engine.fusion.base import Activation, FusedKernels
from pdray.engine.fusion.linears import is_plain_linear, side_by_side

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.GELU: F.gelu,
}


class FusedMLP(nn.Module):
    """Takes the place of a gated MLP; works on any leading dimensions."""

    def __init__(
        self,
        gate_up: nn.Module,
        down: nn.Module,
        activation: Activation,
        kernels: FusedKernels,
    ) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self._activation = activation
        self._kernels = kernels

    @classmethod
    def of(cls, module: nn.Module, kernels: FusedKernels) -> FusedMLP | None:
        """None where the module is no such MLP."""
        children = dict(module.named_children())
        activation = find_activation(children.pop("act_fn", children.pop("activation_fn", None)))
        linears = {name: each for name, each in children.items() if is_plain_linear(each)}
        if activation is None or len(linears) < len(children):
            return None
        match linears:
            case {"gate_proj": gate, "up_proj": up, "down_proj": down} if len(linears) == 3:
                gate_up = side_by_side(gate, up)
            case {"gate_up_proj": both, "down_proj": down} if len(linears) == 2:
                gate_up = side_by_side(both)
            case _:
                return None
        return cls(gate_up, side_by_side(down), activation, kernels)

    def forward(self, input_D: torch.Tensor) -> torch.Tensor:
        gate_up: torch.Tensor = self.gate_up(input_D)
        hidden = self._kernels.gated_activation(gate_up.flatten(0, -2), self._activation)
        out: torch.Tensor = self.down(hidden)
        return out.view(input_D.shape)


def find_activation(function: nn.Module | None) -> Activation | None:
    """The activation that gives these numbers."""
    if function is None or list(function.parameters()):
        return None
    sample = torch.linspace(-6, 6, 97)
    for activation, reference in _ACTIVATIONS.items():
        if torch.allclose(function(sample), reference(sample), rtol=1e-5, atol=1e-6):
            return activation
    return None
