"""What a device's fused kernels do, and what they are told of a layer.

Tensor suffixes: T packed tokens, D model dim, F the hidden dim of an MLP, X the columns of a
fused projection (query, key and value heads side by side), R rotary dim.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch


class Activation(enum.IntEnum):
    """Of the gate in ``activation(gate) * up``; the numbers are the kernels' own."""

    SILU = 0
    GELU_TANH = 1
    GELU = 2


@dataclass(frozen=True, slots=True)
class Norm:
    """``x / sqrt(mean(x^2) + eps) * weight``; ``weight`` is in fp32, and 1 + the stored one for
    models that store it so."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Columns of a fused projection: ``num_heads`` queries and ``num_kv_heads`` keys of
    ``head_dim``, then as many values of ``v_head_dim``."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    q_norm: Norm | None
    k_norm: Norm | None

    @property
    def q_columns(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def k_columns(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def v_columns(self) -> int:
        return self.num_kv_heads * self.v_head_dim

    def split(self, qkv_TX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views of query [heads, T, head dim], key and value."""
        num_tokens, columns = qkv_TX.shape
        begin = qkv_TX.storage_offset()

        def view(heads: int, size: int, offset: int) -> torch.Tensor:
            return qkv_TX.as_strided((heads, num_tokens, size), (size, columns, 1), begin + offset)

        return (
            view(self.num_heads, self.head_dim, 0),
            view(self.num_kv_heads, self.head_dim, self.q_columns),
            view(self.num_kv_heads, self.v_head_dim, self.q_columns + self.k_columns),
        )


class FusedKernels(Protocol):
    """Every tensor is contiguous in its last dimension; results are new unless said otherwise."""

    def rms_norm(self, input_TD: torch.Tensor, norm: Norm) -> torch.Tensor: ...

    def add_norms(
        self,
        branch_TD: torch.Tensor,
        branch_norm: Norm | None,
        residual_TD: torch.Tensor,
        norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the residual and the branch, normed first where it has a norm; and that sum
        normed, or the sum again without ``norm``."""

    def gated_activation(self, gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        """[T, F], from the gate's columns and then the other's."""

    def norm_and_rotate(
        self, qkv_TX: torch.Tensor, heads: Heads, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> None:
        """In place: each query and key head normed where there is a norm, then its first R
        dimensions rotated, the first half of them against the second."""
