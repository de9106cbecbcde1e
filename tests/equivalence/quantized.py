"""Quantized checkpoints and the plain ones that say the same, made by the formats' definitions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

BLOCK = 32
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1_CODES = torch.tensor(E2M1 + [-value for value in E2M1])
"""What the sixteen numbers of four bits stand for."""

Tensors = dict[str, torch.Tensor]


def to_fp8(plain: Path, quantized: Path) -> None:
    """Float8 with a factor for each block of 32 x 32; ``plain`` gets the rounded numbers too."""
    config = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    _rewrite(plain, quantized, config, _fp8)


def to_mxfp4(plain: Path, quantized: Path) -> None:
    """As gpt-oss has its experts: numbers of four bits, a power of two for each 32 of them."""
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
    kept += ["model.embed_tokens", "lm_head"]
    config = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    _rewrite(plain, quantized, config, _mxfp4)


def _rewrite(
    plain: Path,
    quantized: Path,
    config: dict[str, Any],
    quantize: Callable[[str, torch.Tensor], tuple[Tensors, Tensors]],
) -> None:
    shutil.copytree(plain, quantized, dirs_exist_ok=True)
    path = quantized / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    rounded: Tensors = {}
    packed: Tensors = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        as_plain, as_packed = quantize(name, tensor)
        rounded |= as_plain
        packed |= as_packed
    for folder, tensors in ((plain, rounded), (quantized, packed)):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _fp8(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
    if not name.endswith("_proj.weight"):
        return {name: tensor}, {name: tensor}
    rows, columns = (size // BLOCK for size in tensor.shape)
    blocks = tensor.view(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scales).to(torch.float8_e4m3fn)
    rounded = (codes.float() * scales).reshape(tensor.shape)
    packed = {
        name: codes.reshape(tensor.shape),
        f"{name}_scale_inv": scales.reshape(rows, columns).clone(),
    }
    return {name: rounded}, packed


def _mxfp4(name: str, tensor: torch.Tensor) -> tuple[Tensors, Tensors]:
    """An expert's weight is [experts, in, out] when plain, and [experts, out, in] packed."""
    if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return {name: tensor}, {name: tensor}
    runs = tensor.transpose(1, 2).unflatten(2, (-1, BLOCK))
    exponents = torch.floor(torch.log2(runs.abs().amax(dim=-1, keepdim=True))) - 2
    nearest = (runs / 2**exponents)[..., None] - E2M1_CODES
    codes = nearest.abs().argmin(dim=-1).to(torch.uint8)
    rounded = (E2M1_CODES[codes.long()] * 2**exponents).flatten(2).transpose(1, 2)
    packed = {
        f"{name}_blocks": codes[..., 0::2] | (codes[..., 1::2] << 4),
        f"{name}_scales": (exponents[..., 0] + 127).to(torch.uint8),
    }
    return {name: rounded.contiguous()}, packed
