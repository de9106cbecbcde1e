"""Linear layers that read the same input, as one."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

from pdray.engine.linear import PackedLinear, is_packable


def is_plain_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Nothing else happens to it: no subclass, no hook of somebody's."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def side_by_side(*linears: nn.Linear) -> nn.Module:
    """One layer whose output is theirs in a row, packed where that is faster. They may still be
    used; their weights are freed with them."""
    joined = linears[0] if len(linears) == 1 else _join(linears)
    return PackedLinear(joined) if is_packable(joined.weight) else joined


def _join(linears: tuple[nn.Linear, ...]) -> nn.Linear:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    has_bias = any(linear.bias is not None for linear in linears)
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=has_bias, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if has_bias:
        biases: list[torch.Tensor] = [
            weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
            for linear in linears
        ]
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined
