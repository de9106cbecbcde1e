"""Which parts of a model are fused, and that a part which gives other numbers is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pdray.engine.fusion.decoder_layer import FusedDecoderLayer
from pdray.engine.fusion.gated_mlp import FusedMLP
from pdray.engine.fusion.norms import FusedNorm, find_norm
from pdray.engine.model import load_model
from tests.equivalence.families import save_family


def modules_of(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_sliding", "gemma3_groups"])
def test_every_layer_of_a_dense_family_is_fused(family: str, tmp_path: Path) -> None:
    save_family(family, tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    assert len(modules_of(loaded.model, FusedDecoderLayer)) == len(loaded.layers)
    assert len(modules_of(loaded.model, FusedMLP)) == len(loaded.layers)
    assert len(modules_of(loaded.model, FusedNorm)) == 1  # the last one


def test_replaced_weights_are_freed(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    loaded = load_model(tmp_path, dtype="float32", device="cpu")
    assert all(not list(layer.module.parameters()) for layer in loaded.layers)


class CenteredNorm(nn.Module):
    """Looks like an RMS norm, and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16))
        self.eps = 1e-6

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        centered = values - values.mean(-1, keepdim=True)
        scale = torch.rsqrt(centered.pow(2).mean(-1, keepdim=True) + self.eps)
        return centered * scale * self.weight


def test_a_norm_is_known_by_its_numbers() -> None:
    with torch.inference_mode():
        assert find_norm(CenteredNorm()) is None
        known = nn.RMSNorm(16, eps=1e-6)
        nn.init.uniform_(known.weight)
        norm = find_norm(known)
        assert norm is not None
        assert torch.equal(norm.weight, known.weight)
