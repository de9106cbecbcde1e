"""The CPU's fused kernels against plain torch, in fp32 and bf16, for one token and many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pdray.engine.fusion.base import Activation, Heads, Norm
from pdray.engine.fusion.cpu import CpuKernels

DTYPES = [torch.float32, torch.bfloat16]
TOKENS = [1, 2, 37]


def plain_norm(values: torch.Tensor, norm: Norm) -> torch.Tensor:
    wide = values.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return (wide * scale * norm.weight).to(values.dtype)


def random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(ours: torch.Tensor, plain: torch.Tensor) -> None:
    # Two roundings of bf16 may fall to different sides.
    tolerance = 1e-5 if plain.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", TOKENS)
def test_a_branch_is_normed_added_and_the_sum_normed(num_tokens: int, dtype: torch.dtype) -> None:
    kernels = CpuKernels(dtype)
    branch, residual = (random(num_tokens, 72, dtype=dtype, seed=seed) for seed in (0, 1))
    before, after = (Norm(torch.rand(72) + 0.5, eps) for eps in (1e-6, 1e-5))
    total, normed = kernels.add_norms(branch, before, residual, after)
    expected = residual + plain_norm(branch, before)
    assert_close(total, expected)
    assert_close(normed, plain_norm(expected, after))
    assert_close(kernels.rms_norm(branch, before), plain_norm(branch, before))


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_norms_the_sum_is_plain_and_given_twice(dtype: torch.dtype) -> None:
    branch, residual = (random(3, 40, dtype=dtype, seed=seed) for seed in (0, 1))
    total, again = CpuKernels(dtype).add_norms(branch, None, residual, None)
    assert torch.equal(total, residual + branch)
    assert torch.equal(again, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", TOKENS)
@pytest.mark.parametrize(
    ("activation", "plain"),
    [
        (Activation.SILU, F.silu),
        (Activation.GELU_TANH, lambda x: F.gelu(x, approximate="tanh")),
        (Activation.GELU, F.gelu),
    ],
)
def test_gates(activation: Activation, plain, num_tokens: int, dtype: torch.dtype) -> None:
    gate_up = 3 * random(num_tokens, 2 * 51, dtype=dtype, seed=2)
    ours = CpuKernels(dtype).gated_activation(gate_up, activation)
    assert_close(ours, plain(gate_up[:, :51]) * gate_up[:, 51:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary_dim", [16, 32])
@pytest.mark.parametrize("has_norms", [True, False])
def test_heads_are_normed_and_rotated_in_place(
    has_norms: bool, rotary_dim: int, dtype: torch.dtype
) -> None:
    norms = [Norm(torch.rand(32) + 0.5, 1e-6) for _ in range(2)] if has_norms else [None, None]
    heads = Heads(
        num_heads=4, num_kv_heads=2, head_dim=32, v_head_dim=24, q_norm=norms[0], k_norm=norms[1]
    )
    qkv = random(5, 6 * 32 + 2 * 24, dtype=dtype, seed=3)
    cos, sin = (random(5, rotary_dim, dtype=dtype, seed=seed) for seed in (4, 5))
    expected = [each.transpose(0, 1).clone() for each in heads.split(qkv)]
    for place, norm in enumerate(norms):
        if norm is not None:
            expected[place] = plain_norm(expected[place], norm)
        turned = expected[place][..., :rotary_dim]
        low, high = turned.chunk(2, dim=-1)
        swapped = torch.cat((-high, low), dim=-1)
        rotated = turned * cos[:, None] + swapped * sin[:, None]
        expected[place] = torch.cat((rotated, expected[place][..., rotary_dim:]), dim=-1)
    CpuKernels(dtype).norm_and_rotate(qkv, heads, cos, sin)
    for ours, plain in zip(heads.split(qkv), expected, strict=True):
        assert_close(ours.transpose(0, 1), plain)
