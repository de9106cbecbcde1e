"""Whole decoder layers: attention and an MLP, each a branch beside a residual stream.

Two forms are known, by their children: a norm before each branch (Llama's), and a norm before
and after each (Gemma's). Tensor suffixes as in base.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pdray.engine.attention.routing import attend_heads
from pdray.engine.fusion.base import FusedKernels, Heads, Norm
from pdray.engine.fusion.gated_mlp import FusedMLP
from pdray.engine.fusion.linears import is_plain_linear, side_by_side
from pdray.engine.fusion.norms import find_norm
from pdray.engine.probe import ProbedLayer

_PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
_SANDWICH_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


@dataclass(frozen=True, slots=True)
class LayerNorms:
    """``after`` ones are of a branch's result, before it joins the residual."""

    before_attention: Norm
    after_attention: Norm | None
    before_mlp: Norm
    after_mlp: Norm | None


class FusedAttention(nn.Module):
    """Query, key and value as one product, then the attention that is served to ``layer``."""

    def __init__(
        self,
        layer: ProbedLayer,
        qkv: nn.Module,
        out: nn.Module,
        heads: Heads,
        kernels: FusedKernels,
    ) -> None:
        super().__init__()
        self.qkv = qkv
        self.out = out
        self._layer = layer
        self._heads = heads
        self._kernels = kernels

    @classmethod
    def of(cls, layer: ProbedLayer, kernels: FusedKernels) -> FusedAttention | None:
        """None where the module has other parts than projections and norms of heads."""
        parts = dict(layer.module.named_children())
        norms = {name: find_norm(parts.pop(name)) for name in ("q_norm", "k_norm") if name in parts}
        projections = {name: part for name, part in parts.items() if is_plain_linear(part)}
        if len(projections) < len(parts) or None in norms.values():
            return None
        match projections:
            case {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": out} if len(projections) == 4:
                pass
            case _:
                return None
        kv = layer.kv
        if any(norm is not None and len(norm.weight) != kv.k_head_dim for norm in norms.values()):
            return None
        heads = Heads(
            num_heads=layer.num_heads,
            num_kv_heads=kv.num_kv_heads,
            head_dim=kv.k_head_dim,
            v_head_dim=kv.v_head_dim,
            q_norm=norms.get("q_norm"),
            k_norm=norms.get("k_norm"),
        )
        sizes = [linear.out_features for linear in (q, k, v)]
        if sizes != [heads.q_columns, heads.k_columns, heads.v_columns]:
            return None
        return cls(layer, side_by_side(q, k, v), side_by_side(out), heads, kernels)

    def forward(
        self, input_TD: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> torch.Tensor:
        qkv_TX: torch.Tensor = self.qkv(input_TD)
        self._kernels.norm_and_rotate(qkv_TX, self._heads, cos_TR, sin_TR)
        heads = self._heads.split(qkv_TX)
        attended_TX = attend_heads(self._layer.module, *heads, self._layer.params)
        out: torch.Tensor = self.out(attended_TX)
        return out


class FusedDecoderLayer(nn.Module):
    """Takes the place of a decoder layer of one of the two forms."""

    def __init__(
        self, attention: FusedAttention, mlp: nn.Module, norms: LayerNorms, kernels: FusedKernels
    ) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp
        self._norms = norms
        self._kernels = kernels

    @classmethod
    def of(
        cls, module: nn.Module, layer: ProbedLayer, kernels: FusedKernels
    ) -> FusedDecoderLayer | None:
        """None where the module has other parts, or its attention has."""
        parts = dict(module.named_children())
        mlp = parts.pop("mlp", None)
        is_known = parts.pop("self_attn", None) is layer.module and mlp is not None
        norms = find_layer_norms(parts) if is_known else None
        attention = FusedAttention.of(layer, kernels) if norms is not None else None
        if mlp is None or norms is None or attention is None:
            return None
        return cls(attention, FusedMLP.of(mlp, kernels) or mlp, norms, kernels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: object,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: object,
    ) -> torch.Tensor:
        """The signature of transformers' layers: [1, T, D], and [1, T, R] twice. The mask is in
        the plan of whoever serves attention."""
        kernels, norms = self._kernels, self._norms
        residual = hidden_states[0]
        cos, sin = position_embeddings
        normed = kernels.rms_norm(residual, norms.before_attention)
        branch = self.attention(normed, cos[0], sin[0])
        residual, normed = kernels.add_norms(
            branch, norms.after_attention, residual, norms.before_mlp
        )
        branch = self.mlp(normed[None])
        if isinstance(branch, tuple):  # experts come with their router's scores
            branch = branch[0]
        residual, _ = kernels.add_norms(branch[0], norms.after_mlp, residual, None)
        return residual[None]


def find_layer_norms(parts: dict[str, nn.Module]) -> LayerNorms | None:
    """From the children of a layer that are neither its attention nor its MLP."""
    found = {name: norm for name, part in parts.items() if (norm := find_norm(part)) is not None}
    if len(found) < len(parts):
        return None
    if set(found) == set(_PRE_NORMS):
        before_attention, before_mlp = (found[name] for name in _PRE_NORMS)
        return LayerNorms(before_attention, None, before_mlp, None)
    if set(found) == set(_SANDWICH_NORMS):
        return LayerNorms(*(found[name] for name in _SANDWICH_NORMS))
    return None
