"""Fused kernels on a GPU: shapes and strides to launches of ``triton_kernels``.

Tensor suffixes as in base.py; N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

import torch
import triton

from pdray.engine.fusion import triton_kernels
from pdray.engine.fusion.base import Activation, Heads, Norm

# Programs of one kernel should be many, and yet each have a few KiB to read.
_GATE_BLOCK = 1024
_ROTARY_ELEMENTS = 2048


class TritonKernels:
    def rms_norm(self, input_TD: torch.Tensor, norm: Norm) -> torch.Tensor:
        size = input_TD.shape[-1]
        rows = input_TD.reshape(-1, size)
        out = torch.empty_like(rows)
        if len(rows):
            block = triton.next_power_of_2(size)
            triton_kernels.rms_norm_kernel[(len(rows),)](
                rows,
                norm.weight,
                out,
                rows.stride(0),
                out.stride(0),
                size,
                norm.eps,
                BLOCK=block,
                num_warps=_num_warps(block),
            )
        return out.view(input_TD.shape)

    def add_norms(
        self,
        branch_TD: torch.Tensor,
        branch_norm: Norm | None,
        residual_TD: torch.Tensor,
        norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = residual_TD.shape[-1]
        residual, branch = residual_TD.reshape(-1, size), branch_TD.reshape(-1, size)
        total = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
        out = total if norm is None else torch.empty_like(total)
        if len(residual):
            block = triton.next_power_of_2(size)
            triton_kernels.add_norms_kernel[(len(residual),)](
                branch,
                _weight(branch_norm, residual),
                residual,
                _weight(norm, residual),
                total,
                out,
                branch.stride(0),
                residual.stride(0),
                out.stride(0),
                size,
                _eps(branch_norm),
                _eps(norm),
                HAS_BRANCH_NORM=branch_norm is not None,
                HAS_NORM=norm is not None,
                BLOCK=block,
                num_warps=_num_warps(block),
            )
        return total.view(residual_TD.shape), out.view(residual_TD.shape)

    def gated_activation(self, gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        num_tokens, columns = gate_up_T2F.shape
        size = columns // 2
        out_TF = gate_up_T2F.new_empty(num_tokens, size)
        if num_tokens:
            block = min(_GATE_BLOCK, triton.next_power_of_2(size))
            triton_kernels.gate_kernel[(num_tokens, triton.cdiv(size, block))](
                gate_up_T2F,
                out_TF,
                gate_up_T2F.stride(0),
                out_TF.stride(0),
                size,
                ACTIVATION=activation.name.lower(),
                BLOCK=block,
                num_warps=_num_warps(block),
            )
        return out_TF

    def norm_and_rotate(
        self, qkv_TX: torch.Tensor, heads: Heads, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> None:
        if len(qkv_TX) == 0:
            return
        query_NTH, key_KTH, _ = heads.split(qkv_TX)
        half = cos_TR.shape[-1] // 2
        rest = heads.head_dim - 2 * half
        heads_fit = max(1, _ROTARY_ELEMENTS // triton.next_power_of_2(heads.head_dim))
        num_fused = min(heads_fit, triton.next_power_of_2(heads.num_heads))
        num_groups = [triton.cdiv(num, num_fused) for num in (heads.num_heads, heads.num_kv_heads)]
        triton_kernels.rotary_kernel[(len(qkv_TX), sum(num_groups))](
            query_NTH,
            key_KTH,
            _weight(heads.q_norm, cos_TR),
            _weight(heads.k_norm, cos_TR),
            cos_TR,
            sin_TR,
            query_NTH.stride(0),
            query_NTH.stride(1),
            key_KTH.stride(0),
            key_KTH.stride(1),
            cos_TR.stride(0),
            sin_TR.stride(0),
            heads.num_heads,
            heads.num_kv_heads,
            _eps(heads.q_norm),
            _eps(heads.k_norm),
            HAS_QUERY_NORM=heads.q_norm is not None,
            HAS_KEY_NORM=heads.k_norm is not None,
            HALF=half,
            REST=rest,
            HALF_BLOCK=triton.next_power_of_2(half),
            REST_BLOCK=triton.next_power_of_2(max(1, rest)),
            HEADS=num_fused,
            num_warps=4,
        )


def _weight(norm: Norm | None, unread: torch.Tensor) -> torch.Tensor:
    """A kernel wants a pointer, and reads it only where there is a norm."""
    return unread if norm is None else norm.weight


def _eps(norm: Norm | None) -> float:
    return 0.0 if norm is None else norm.eps


def _num_warps(block: int) -> int:
    return min(16, max(1, block // 512))
