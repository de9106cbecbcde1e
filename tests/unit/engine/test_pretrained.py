"""Checkpoints that cannot be loaded: each is refused in words, none is loaded by halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from pdray.core.errors import UnsupportedModelError
from pdray.engine.model import check_ranks, load_model

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
raise RuntimeError("the checkpoint's code runs")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        load_model(folder, dtype="float32", device="cpu")


def test_the_folder_loads_before_it_is_changed(folder: Path) -> None:
    assert len(load_model(folder, dtype="float32", device="cpu").layers) == 2


def test_a_model_with_code_of_its_own_is_refused_and_its_code_not_run(folder: Path) -> None:
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "own.py").write_text(CODE)
    change_config(folder, model_type="of_its_own", auto_map=classes)
    refused(folder, "contains custom code")
    assert not (folder / "ran").exists()


def test_code_beside_a_model_that_transformers_knows_is_not_run(folder: Path) -> None:
    (folder / "own.py").write_text(CODE)
    change_config(folder, auto_map={"AutoModelForCausalLM": "own.Model"})
    assert len(load_model(folder, dtype="float32", device="cpu").layers) == 2
    assert not (folder / "ran").exists()


def test_a_model_type_that_transformers_does_not_know_is_refused(folder: Path) -> None:
    change_config(folder, model_type="of_tomorrow")
    refused(folder, "of_tomorrow")


def test_a_config_without_a_model_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    refused(folder, "model_type")


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    def take_out(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    change_weights(folder, take_out)
    refused(folder, r"1 weights of the model are not in it: model\.layers\.1\.mlp\.up_proj\.weight")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()

    change_weights(folder, cut)
    refused(folder, "size mismatch|mismatched|shape")


def test_a_quantizer_whose_package_is_missing_is_named(folder: Path) -> None:
    config = {"quant_method": "aqlm", "in_group_size": 8, "out_group_size": 1}
    change_config(folder, quantization_config=config)
    refused(folder, r"pip install `?.*aqlm")


def test_a_quantizer_that_needs_a_gpu_is_refused(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    change_config(folder, quantization_config={"quant_method": "nvfp4"})
    refused(folder, "NVFP4|GPU|CUDA")


def test_an_unknown_quantizer_is_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "of_tomorrow"})
    refused(folder, "quantized by 'of_tomorrow', which transformers does not know")


def test_a_quantization_that_does_not_say_its_method_is_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"bits": 4})
    refused(folder, "quant_method")


def test_a_quantized_checkpoint_is_not_split_over_ranks(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnsupportedModelError, match=r"tensor_parallel: 2: .* is not split"):
        check_ranks(folder, 2)


def save_gguf(path: Path, architecture: str = "llama") -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", torch.zeros(64, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    save_gguf(tmp_path / "small.gguf", "of_tomorrow")
    refused(tmp_path, "of_tomorrow")


@pytest.mark.parametrize("num_bytes", [6, 30, 100, -1000])
def test_a_gguf_file_that_is_cut_off_is_refused(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "small.gguf"
    save_gguf(path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    refused(tmp_path, r"small\.gguf")
