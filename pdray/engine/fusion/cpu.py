"""Fused kernels on a CPU, in fp32 and bf16.

Tensor suffixes as in base.py.
"""

from __future__ import annotations

import torch

from pdray.engine.fusion import cpu_kernels
from pdray.engine.fusion.base import Activation, Heads, Norm
from pdray.engine.openmp import compile_body, float_bits, launch

DTYPES = (torch.float32, torch.bfloat16)


class CpuKernels:
    """Raises ConfigError where torch has no OpenMP library to run them on."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._is_bf16 = int(dtype == torch.bfloat16)
        self._num_threads = torch.get_num_threads()
        self._add_norms = compile_body(cpu_kernels.add_norms)
        self._gated_activation = compile_body(cpu_kernels.gated_activation)
        self._norm_and_rotate = compile_body(cpu_kernels.norm_and_rotate)

    def rms_norm(self, input_TD: torch.Tensor, norm: Norm) -> torch.Tensor:
        out_TD = torch.empty_like(input_TD)
        size = input_TD.shape[-1]
        self._launch_norms(
            (input_TD.numel() // size, size, input_TD.data_ptr(), 0, 0, 0),
            (norm.weight.data_ptr(), out_TD.data_ptr(), 0, float_bits(norm.eps)),
        )
        return out_TD

    def add_norms(
        self,
        branch_TD: torch.Tensor,
        branch_norm: Norm | None,
        residual_TD: torch.Tensor,
        norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total_TD = torch.empty_like(residual_TD)
        normed_TD = total_TD if norm is None else torch.empty_like(residual_TD)
        size = residual_TD.shape[-1]
        self._launch_norms(
            (
                residual_TD.numel() // size,
                size,
                branch_TD.data_ptr(),
                _weight(branch_norm),
                residual_TD.data_ptr(),
                total_TD.data_ptr(),
            ),
            (_weight(norm), normed_TD.data_ptr(), _eps(branch_norm), _eps(norm)),
        )
        return total_TD, normed_TD

    def _launch_norms(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        launch(self._add_norms, self._num_threads, (self._is_bf16, *inputs, *outputs))

    def gated_activation(self, gate_up_T2F: torch.Tensor, activation: Activation) -> torch.Tensor:
        num_tokens, columns = gate_up_T2F.shape
        out_TF = gate_up_T2F.new_empty(num_tokens, columns // 2)
        launch(
            self._gated_activation,
            self._num_threads,
            (
                self._is_bf16,
                num_tokens,
                columns // 2,
                gate_up_T2F.data_ptr(),
                out_TF.data_ptr(),
                int(activation),
            ),
        )
        return out_TF

    def norm_and_rotate(
        self, qkv_TX: torch.Tensor, heads: Heads, cos_TR: torch.Tensor, sin_TR: torch.Tensor
    ) -> None:
        num_tokens, columns = qkv_TX.shape
        launch(
            self._norm_and_rotate,
            self._num_threads,
            (
                self._is_bf16,
                num_tokens,
                qkv_TX.data_ptr(),
                columns,
                heads.num_heads,
                heads.num_kv_heads,
                heads.head_dim,
                cos_TR.shape[-1],
                cos_TR.data_ptr(),
                sin_TR.data_ptr(),
                _weight(heads.q_norm),
                _weight(heads.k_norm),
                _eps(heads.q_norm),
                _eps(heads.k_norm),
            ),
        )


def _weight(norm: Norm | None) -> int:
    return 0 if norm is None else norm.weight.data_ptr()


def _eps(norm: Norm | None) -> int:
    return 0 if norm is None else float_bits(norm.eps)
