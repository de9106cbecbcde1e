"""The products in registers, against torch in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from pdray.engine.vectors import LANES, inner_product, outer_product

_outer = {(rows, vectors): outer_product(rows, vectors) for rows, vectors in ((1, 1), (4, 2))}
_inner = {(rows, others): inner_product(rows, others) for rows, others in ((1, 1), (4, 2), (4, 4))}
LIKES = {torch.float32: np.empty(0, np.float32), torch.bfloat16: np.empty(0, np.int16)}


@pytest.mark.parametrize("dtype", LIKES)
@pytest.mark.parametrize("shape", _outer)
@pytest.mark.parametrize("size", [1, 17])
def test_an_outer_product_is_added(shape: tuple[int, int], size: int, dtype: torch.dtype) -> None:
    (num_rows, num_vectors), like = shape, LIKES[dtype]
    multiply = _outer[shape]

    @njit
    def run(data, values, sums, strides):
        multiply(like, data, strides[0], values, strides[1], size, sums, strides[2], values)

    columns = num_vectors * LANES
    data = torch.randn(num_rows, size + 3)
    values = torch.randn(size, columns + 5).to(dtype)
    sums = torch.randn(num_rows, columns + 1)
    expected = sums.double()
    expected[:, :columns] += data[:, :size].double() @ values[:, :columns].double()
    strides = tuple(each.stride(0) * each.itemsize for each in (data, values, sums))
    run(data.data_ptr(), values.data_ptr(), sums.data_ptr(), strides)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", LIKES)
@pytest.mark.parametrize("shape", [each for each in _inner if each[0] * each[1] <= LANES])
@pytest.mark.parametrize("num_steps", [1, 5])
def test_inner_products_are_written(
    shape: tuple[int, int], num_steps: int, dtype: torch.dtype
) -> None:
    (num_rows, num_others), like, size = shape, LIKES[dtype], num_steps * LANES
    multiply = _inner[shape]

    @njit
    def run(data, others, out, strides):
        multiply(like, data, strides[0], others, strides[1], size, out, strides[2], others)

    data = torch.randn(num_rows, size + 3)
    others = torch.randn(num_others, size + 5).to(dtype)
    out = torch.full((num_rows, num_others + 1), 7.0)
    strides = tuple(each.stride(0) * each.itemsize for each in (data, others, out))
    run(data.data_ptr(), others.data_ptr(), out.data_ptr(), strides)
    expected = data[:, :size].double() @ others[:, :size].double().t()
    torch.testing.assert_close(out[:, :num_others].double(), expected, rtol=1e-5, atol=1e-5)
    assert (out[:, num_others] == 7).all()
