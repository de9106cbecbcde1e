"""A checkpoint's files are found, and what is missing, cut off or of no use is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pdray.core.errors import ConfigError
from pdray.engine.checkpoint import open_checkpoint

TENSORS = {"a": torch.zeros(4, 8, dtype=torch.bfloat16), "b": torch.zeros(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def save_shards(folder: Path, *, pattern: str = "model-{}.safetensors") -> Path:
    names = {name: pattern.format(name) for name in TENSORS}
    for name, file in names.items():
        save_file({name: TENSORS[name]}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return index


def test_one_file(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.weight_files == (folder / "model.safetensors",)
    assert checkpoint.plain_dtype() == "bfloat16"  # 32 numbers of 35
    assert checkpoint.num_bytes_as("float32") == 4 * 35
    assert checkpoint.num_bytes_as("float16") == 2 * 35


def test_shards(folder: Path) -> None:
    save_shards(folder)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.weight_files == (
        folder / "model-a.safetensors",
        folder / "model-b.safetensors",
    )
    assert checkpoint.num_bytes_as("bfloat16") == 2 * 35


def test_quantised_numbers_keep_their_size_and_do_not_say_the_dtype(folder: Path) -> None:
    packed = torch.zeros(100, dtype=torch.uint8)
    save_file({"packed": packed, "norm": torch.zeros(5)}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.plain_dtype() == "float32"
    assert checkpoint.num_bytes_as("bfloat16") == 100 + 2 * 5


def test_what_transformers_would_not_load_does_not_count(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    save_file(TENSORS, folder / "consolidated.safetensors")
    assert open_checkpoint(folder).weight_files == (folder / "model.safetensors",)


def test_a_gguf_file_and_a_folder_with_one(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF and more")
    assert open_checkpoint(path) == open_checkpoint(tmp_path)
    assert open_checkpoint(path).is_gguf
    assert open_checkpoint(path).plain_dtype() is None


def test_weights_beside_a_gguf_file_go_first(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "small.gguf").write_bytes(b"GGUF and more")
    assert open_checkpoint(folder).path == folder


def test_several_gguf_files_are_refused_with_their_names(tmp_path: Path) -> None:
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"q4\.gguf, q8\.gguf; accepted: the path of one"):
        open_checkpoint(tmp_path)


def test_a_file_that_only_has_the_name_of_a_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match=r"small\.gguf.*is no GGUF file"):
        open_checkpoint(tmp_path / "small.gguf")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json is no good"):
        open_checkpoint(folder)


def test_a_config_that_is_no_text_is_refused(folder: Path) -> None:
    save_file(TENSORS, folder / "model.safetensors")
    (folder / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.json is no good"):
        open_checkpoint(folder)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no weights"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    save_shards(folder)
    (folder / "model-b.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"has no model-b\.safetensors, which model\.safe"):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}'])
def test_a_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConfigError, match=r"index\.json is no good"):
        open_checkpoint(folder)


@pytest.mark.parametrize("num_bytes", [0, 7, 8, 20, 100, -1])
def test_a_file_that_is_cut_off_is_named(folder: Path, num_bytes: int) -> None:
    save_shards(folder)
    file = folder / "model-a.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ConfigError, match=r"model-a\.safetensors .*cut off"):
        open_checkpoint(folder)


@pytest.mark.parametrize("header", [b"[1, 2]", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"\xff{"])
def test_a_damaged_header_is_named(folder: Path, header: bytes) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ConfigError, match=r"model\.safetensors has a header that cannot be read"):
        open_checkpoint(folder)


def test_an_adapter_is_refused_with_or_without_a_model_beside_it(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a LoRA adapter"):
        open_checkpoint(folder)
    save_file(TENSORS, folder / "model.safetensors")
    with pytest.raises(ConfigError, match="is a LoRA adapter"):
        open_checkpoint(folder)
