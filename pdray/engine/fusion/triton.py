"""Fused kernels on a GPU: shapes and strides to launches of ``triton_kernels``.

Suffixes as there. Last dimensions are contiguous, other strides are free. Weights are what the
normed row is multiplied by, with a model's ``1 +`` in them.
"""

from __future__ import annotations

import torch
import triton

from pdray.engine.fusion import triton_kernels

# Programs of one kernel should be many, and yet each have a few KiB to read.
_GATE_BLOCK = 1024
_ROTARY_ELEMENTS = 2048

WeightAndEps = tuple[torch.Tensor, float]


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    num_tokens, size = x_TD.shape
    out_TD = x_TD.new_empty(num_tokens, size)
    if num_tokens:
        block = triton.next_power_of_2(size)
        triton_kernels.rms_norm_kernel[(num_tokens,)](
            x_TD,
            weight_D,
            out_TD,
            x_TD.stride(0),
            out_TD.stride(0),
            size,
            eps,
            BLOCK=block,
            num_warps=_num_warps(block),
        )
    return out_TD


def add_norms(
    branch_TD: torch.Tensor,
    branch_norm: WeightAndEps | None,
    residual_TD: torch.Tensor,
    norm: WeightAndEps | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the residual and the branch, normed first where it has a norm; and that sum
    normed, or the sum again without ``norm``."""
    num_tokens, size = residual_TD.shape
    total_TD = residual_TD.new_empty(num_tokens, size)
    out_TD = total_TD if norm is None else torch.empty_like(total_TD)
    if num_tokens:
        branch_weight, branch_eps = branch_norm or (residual_TD, 0.0)
        weight, eps = norm or (residual_TD, 0.0)
        block = triton.next_power_of_2(size)
        triton_kernels.add_norms_kernel[(num_tokens,)](
            branch_TD,
            branch_weight,
            residual_TD,
            weight,
            total_TD,
            out_TD,
            branch_TD.stride(0),
            residual_TD.stride(0),
            out_TD.stride(0),
            size,
            branch_eps,
            eps,
            HAS_BRANCH_NORM=branch_norm is not None,
            HAS_NORM=norm is not None,
            BLOCK=block,
            num_warps=_num_warps(block),
        )
    return total_TD, out_TD


def gated_activation(gate_up_TG: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(gate) * up``, where a row is gate then up; activation silu, gelu_tanh, gelu."""
    num_tokens, width = gate_up_TG.shape
    size = width // 2
    out_TF = gate_up_TG.new_empty(num_tokens, size)
    if num_tokens:
        block = min(_GATE_BLOCK, triton.next_power_of_2(size))
        triton_kernels.gate_kernel[(num_tokens, triton.cdiv(size, block))](
            gate_up_TG,
            out_TF,
            gate_up_TG.stride(0),
            out_TF.stride(0),
            size,
            ACTIVATION=activation,
            BLOCK=block,
            num_warps=_num_warps(block),
        )
    return out_TF


def norm_and_rotate(
    query_TNH: torch.Tensor,
    key_TKH: torch.Tensor,
    cos_TR: torch.Tensor,
    sin_TR: torch.Tensor,
    query_norm: WeightAndEps | None = None,
    key_norm: WeightAndEps | None = None,
) -> None:
    """In place: each head normed by itself where there is a norm, then turned."""
    num_tokens, num_heads, head_dim = query_TNH.shape
    num_kv_heads = key_TKH.shape[1]
    if num_tokens == 0:
        return
    half = cos_TR.shape[-1] // 2
    rest = head_dim - 2 * half
    heads_fit = max(1, _ROTARY_ELEMENTS // triton.next_power_of_2(head_dim))
    heads = min(heads_fit, triton.next_power_of_2(num_heads))
    query_weight, query_eps = query_norm or (cos_TR, 0.0)
    key_weight, key_eps = key_norm or (cos_TR, 0.0)
    grid = (num_tokens, triton.cdiv(num_heads, heads) + triton.cdiv(num_kv_heads, heads))
    triton_kernels.rotary_kernel[grid](
        query_TNH,
        key_TKH,
        query_weight,
        key_weight,
        cos_TR,
        sin_TR,
        query_TNH.stride(1),
        query_TNH.stride(0),
        key_TKH.stride(1),
        key_TKH.stride(0),
        cos_TR.stride(0),
        sin_TR.stride(0),
        num_heads,
        num_kv_heads,
        query_eps,
        key_eps,
        HAS_QUERY_NORM=query_norm is not None,
        HAS_KEY_NORM=key_norm is not None,
        HALF=half,
        REST=rest,
        HALF_BLOCK=triton.next_power_of_2(half),
        REST_BLOCK=triton.next_power_of_2(max(1, rest)),
        HEADS=heads,
        num_warps=4,
    )


def _num_warps(block: int) -> int:
    return min(16, max(1, block // 512))
