from __future__ import annotations

import llvmlite.binding as llvm
import pytest
import torch
from torch import nn

from pdray.engine.few_rows import MAX_ROWS, FewRows
from pdray.engine.linear import PackedLinear
from pdray.engine.vectors import has_avx512, has_avx512_bf16


def packed(weight_OI: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI, 16)


# For a CPU with AMX, oneDNN packs a bf16 weight into AMX's tiles.
has_amx_bf16 = llvm.get_host_cpu_features().get("amx-bf16", False)
DTYPES = [
    pytest.param(torch.float32, marks=pytest.mark.skipif(not has_avx512, reason="no AVX-512")),
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not has_avx512_bf16 or has_amx_bf16, reason="no AVX-512 bf16, or AMX"
        ),
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 13, 32, MAX_ROWS, MAX_ROWS + 1, 200])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 64), (128, 128), (320, 640)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_torchs(
    num_rows: int, num_inputs: int, num_outputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight = torch.randn(num_outputs, num_inputs).to(dtype)
    data = torch.randn(num_rows, num_inputs).to(dtype)
    bias = torch.randn(num_outputs).to(dtype) if has_bias else None
    out = torch.full((num_rows, num_outputs), torch.nan, dtype=dtype)
    few_rows = FewRows.of(packed(weight), weight)
    assert few_rows is not None
    few_rows.multiply(data, num_rows, bias, out)
    expected = torch.nn.functional.linear(data.double(), weight.double())
    expected = expected if bias is None else expected + bias
    # A bf16 has eight bits.
    tolerance = 1e-4 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [((100, 64), torch.float32), ((128, 63), torch.float32), ((128, 64), torch.float16)],
)
def test_other_forms_are_left_to_onednn(size: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(size)
    assert FewRows.of(packed(weight), weight.to(dtype)) is None


def test_a_weight_that_lies_otherwise_is_left_to_onednn() -> None:
    weight = torch.randn(640, 64)
    in_plain_order = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    assert FewRows.of(in_plain_order, weight) is None


def test_panels_that_would_keep_threads_waiting_are_left_to_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(64 * 5, 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert FewRows.of(packed(weight), weight) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert (FewRows.of(packed(weight), weight) is not None) == has_avx512


def test_a_reused_output_is_good_until_the_next_call() -> None:
    linear = nn.Linear(32, 128)
    layer = PackedLinear(linear)
    layer.reuse_output()
    with torch.inference_mode():
        for num_rows in (3, 1, 0, 200, 2):
            data = torch.randn(num_rows, 32)
            torch.testing.assert_close(layer(data), linear(data), rtol=1e-5, atol=1e-5)
