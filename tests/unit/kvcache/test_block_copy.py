from __future__ import annotations

import itertools
import sys

import pytest
import torch

from pdray.kvcache.block_copy import TorchCopier, block_copier
from pdray.kvcache.storage import TORCH_DTYPES

NUM_BLOCKS = 12
NUM_ELEMENTS = 48
DTYPES = list(TORCH_DTYPES.values())
COPIER = block_copier(torch.device("cpu"))


def arena_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(NUM_BLOCKS, NUM_ELEMENTS).to(dtype)


@pytest.mark.parametrize(("of_arena", "of_staging"), list(itertools.product(DTYPES, repeat=2)))
def test_gathers_and_scatters_in_any_order_and_dtype(
    of_arena: torch.dtype, of_staging: torch.dtype
) -> None:
    arena = arena_of(of_arena)
    ids = torch.tensor([7, 0, 11, 3])
    staging = torch.full((4, NUM_ELEMENTS), torch.nan, dtype=of_staging)
    COPIER.gather(arena, ids, staging)
    for row, block_id in enumerate(ids.tolist()):
        assert torch.equal(staging[row], arena[block_id].to(of_staging))

    other = arena_of(of_arena)
    expected = other.clone()
    COPIER.scatter(staging, other, ids)
    for row, block_id in enumerate(ids.tolist()):
        expected[block_id] = staging[row].to(of_arena)
    assert torch.equal(other, expected)


def test_copies_within_the_arena() -> None:
    arena = arena_of(torch.bfloat16)
    expected = arena.clone()
    expected[[1, 5]] = arena[[9, 2]]
    COPIER.move(arena, torch.tensor([9, 2]), arena, torch.tensor([1, 5]))
    assert torch.equal(arena, expected)


def test_without_cupy_a_gpu_moves_blocks_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    assert isinstance(block_copier(torch.device("cuda")), TorchCopier)
