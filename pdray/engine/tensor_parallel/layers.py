"""Modules of which each rank computes a part, and the exchange that makes the whole of it.

They stand where transformers' own were. What is inside is a plain module with the rank's slice
of the weight, so whatever replaces linear layers by their type finds it.
"""

from __future__ import annotations

import torch
from torch import nn

from pdray.engine.tensor_parallel.group import RankGroup


class SummedRows(nn.Module):
    """A linear layer whose input features are sliced: the ranks' products are summed, then the
    bias is added once. ``splits_input``: the input is whole, and the rank takes its slice."""

    def __init__(self, linear: nn.Linear, group: RankGroup, *, splits_input: bool) -> None:
        super().__init__()
        self.bias = linear.bias
        linear.register_parameter("bias", None)
        self.product = linear
        self._group = group
        self._splits_input = splits_input

    def forward(self, input_TI: torch.Tensor) -> torch.Tensor:
        if self._splits_input:
            slice_width = -(-input_TI.shape[-1] // self._group.size)
            start = self._group.rank * slice_width
            input_TI = input_TI[..., start : start + slice_width]
        out_TO = self._group.all_reduce(self.product(input_TI))
        return out_TO if self.bias is None else out_TO + self.bias


class GatheredColumns(nn.Module):
    """A layer whose output features are sliced, for a reader that wants all of them: on every
    rank, or on rank 0 only."""

    def __init__(self, part: nn.Module, group: RankGroup, width: int, *, at_lead: bool) -> None:
        super().__init__()
        self.part = part
        self._group = group
        self._width = width
        self._at_lead = at_lead

    def forward(self, input_T: torch.Tensor) -> torch.Tensor:
        return self._group.gather_columns(self.part(input_T), self._width, at_lead=self._at_lead)


class SummedEmbedding(nn.Module):
    """An embedding whose vocabulary is sliced: a token's row comes from the rank that has it."""

    def __init__(self, part: nn.Embedding, group: RankGroup, num_tokens: int) -> None:
        super().__init__()
        self.part = part
        self._group = group
        self._start = group.rank * -(-num_tokens // group.size)

    def forward(self, ids_T: torch.Tensor) -> torch.Tensor:
        rows_T = ids_T - self._start
        is_ours_T = (rows_T >= 0) & (rows_T < self.part.weight.shape[0])
        part_TD = self.part(rows_T.where(is_ours_T, 0))
        return self._group.all_reduce(part_TD * is_ours_T[..., None])


def sum_output(module: nn.Module, group: RankGroup) -> None:
    """For modules of a model's own, such as experts: what they return is a part of a sum."""

    def sum_up(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return group.all_reduce(output)

    module.register_forward_hook(sum_up)
