"""The fused Triton kernels against plain torch in fp32, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from pdray.engine.fusion.base import Activation, Heads, Norm
from pdray.engine.fusion.triton import TritonKernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6
KERNELS = TritonKernels()


def tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def assert_rounded_once(out: torch.Tensor, expected: torch.Tensor) -> None:
    """``expected`` is in fp32: the kernel's own error is that of one rounding to its dtype."""
    # Triton's interpreter cuts bf16 where a GPU rounds.
    rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[out.dtype]
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=1e-5)


def reference_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (5, 640), (3, 1000), (2, 4096), (0, 64)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = tensor(*shape, dtype=dtype), tensor(shape[1], seed=1)
    out = KERNELS.rms_norm(x, Norm(weight, EPS))
    assert out.dtype == dtype
    assert_rounded_once(out, reference_norm(x, weight))


def test_rms_norm_of_rows_with_a_stride() -> None:
    x, weight = tensor(4, 96)[:, 16:80], tensor(64, seed=1)
    assert_rounded_once(KERNELS.rms_norm(x, Norm(weight, EPS)), reference_norm(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (5, 640), (3, 1000), (0, 64)])
@pytest.mark.parametrize("has_branch_norm", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
def test_add_norms(
    has_norm: bool, has_branch_norm: bool, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    branch, residual = tensor(*shape, dtype=dtype), tensor(*shape, dtype=dtype, seed=1)
    branch_weight, weight = tensor(shape[1], seed=2), tensor(shape[1], seed=3)
    normed = reference_norm(branch, branch_weight) if has_branch_norm else branch.float()
    total, out = KERNELS.add_norms(
        branch,
        Norm(branch_weight, EPS) if has_branch_norm else None,
        residual,
        Norm(weight, EPS) if has_norm else None,
    )
    # The branch is rounded once, and the sum once more.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}[dtype]
    torch.testing.assert_close(
        total.float(), normed + residual.float(), rtol=tolerance, atol=tolerance
    )
    assert_rounded_once(out, reference_norm(total, weight) if has_norm else total.float())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 96), (7, 1024), (2, 3001), (0, 32)])
@pytest.mark.parametrize("activation", list(Activation))
# A far negative gate: the sigmoid of it is 1 / infinity.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_gated_activation(
    activation: Activation, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    num_tokens, size = shape
    gate_up = 3 * tensor(num_tokens, 2 * size, dtype=dtype)
    gate, up = gate_up.float().chunk(2, dim=-1)
    functional = torch.nn.functional
    activated = {
        "silu": lambda: functional.silu(gate),
        "gelu_tanh": lambda: functional.gelu(gate, approximate="tanh"),
        "gelu": lambda: functional.gelu(gate),
    }[activation.name.lower()]()
    assert_rounded_once(KERNELS.gated_activation(gate_up, activation), activated * up)


def cos_and_sin(num_tokens: int, size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """As a model has them: both halves the same."""
    angles = tensor(num_tokens, size // 2, seed=9).repeat(1, 2)
    return [angles.cos().to(dtype), angles.sin().to(dtype)]


def reference_rotary(x_THR: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    x, size = x_THR.float(), cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    crossed = torch.cat([-second, first], dim=-1)
    turned = turned * cos.float()[:, None] + crossed * sin.float()[:, None]
    return torch.cat([turned, rest], dim=-1)


# tokens, query heads, KV heads, head dim, rotated dims
SHAPES = [(1, 4, 2, 16, 16), (6, 5, 1, 96, 96), (3, 32, 8, 128, 128), (4, 8, 2, 80, 32)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 4, 2, 16, 16)], ids=str)
@pytest.mark.parametrize("has_norms", [(False, False), (True, True), (True, False)], ids=str)
def test_norm_and_rotate_in_the_fused_projections_memory(
    has_norms: tuple[bool, bool], shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    num_tokens, num_heads, num_kv_heads, head_dim, size = shape
    norms = [
        Norm(tensor(head_dim, seed=2 + number), EPS) if has_norm else None
        for number, has_norm in enumerate(has_norms)
    ]
    heads = Heads(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim // 2,
        q_norm=norms[0],
        k_norm=norms[1],
    )
    qkv = tensor(num_tokens, heads.q_columns + heads.k_columns + heads.v_columns, dtype=dtype)
    query, key, value = heads.split(qkv)
    before = value.clone()
    cos, sin = cos_and_sin(num_tokens, size, dtype)
    expected = []
    for each, norm in zip((query, key), norms, strict=True):
        rows = each.transpose(0, 1)
        normed = rows if norm is None else reference_norm(rows, norm.weight)
        expected.append(reference_rotary(normed, cos, sin).transpose(0, 1))
    KERNELS.norm_and_rotate(qkv, heads, cos, sin)
    for each, turned in zip((query, key), expected, strict=True):
        assert_rounded_once(each, turned)
    assert torch.equal(value, before)
