from __future__ import annotations

import pytest
import torch
from torch import nn

from pdray.engine.linear import PackedLinear, pack_linears


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.inner = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 12, bias=False))
        self.head = nn.Linear(12, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embedding(token_ids)))


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 300])
def test_numbers_are_those_of_the_plain_layers(num_rows: int) -> None:
    model = Tied()
    token_ids = torch.arange(num_rows) % 50
    with torch.inference_mode():
        expected = model(token_ids[None])
        pack_linears(model)
        torch.testing.assert_close(model(token_ids[None]), expected, rtol=1e-5, atol=1e-5)


def test_every_linear_layer_is_replaced_and_only_a_shared_weight_stays_plain() -> None:
    model = Tied()
    pack_linears(model)
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(linears) == 3
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert all(linear.weight.is_meta for linear in linears)
    assert not model.embedding.weight.is_meta


def test_no_rows_give_no_rows() -> None:
    model = Tied()
    pack_linears(model)
    with torch.inference_mode():
        assert model.inner(torch.empty(1, 0, 12)).shape == (1, 0, 12)
        assert model.head(torch.empty(1, 0, 12)).shape == (1, 0, 50)
