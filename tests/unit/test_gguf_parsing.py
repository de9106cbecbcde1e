"""What the fast reader finds in a GGUF file, against the package's own reader."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers.integrations.ggml import _gguf_parse_value

from pdray.gguf_parsing import parsed_once

WORDS = ["a", "", "schön", "▁the", "x" * 300, "\n"]


def write_file(path: Path, endianess: gguf.GGUFEndian) -> None:
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_name("written")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_array("words", WORDS)
    writer.add_array("scores", [0.5, -1.0, 3.25])
    writer.add_array("kinds", [1, -2, 3])
    writer.add_array("flags", [True, False])
    writer.add_array("pairs", [[1, 2], [3, 4]])
    writer.add_bool("last", True)
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def values_of(reader: gguf.GGUFReader) -> dict[str, list[object]]:
    """As transformers reads them."""
    return {
        name: [_gguf_parse_value(field.parts[place], field.types) for place in field.data]
        for name, field in reader.fields.items()
        if name != "pairs"  # which it cannot read
    }


def contents_of(reader: gguf.GGUFReader) -> dict[str, object]:
    """As the package itself does."""
    return {name: field.contents() for name, field in reader.fields.items() if name != "pairs"}


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
def test_all_is_found_that_the_plain_reader_finds(
    endianess: gguf.GGUFEndian, tmp_path: Path
) -> None:
    write_file(tmp_path / "made.gguf", endianess)
    plain = gguf.GGUFReader(tmp_path / "made.gguf")
    with parsed_once():
        fast = gguf.GGUFReader(tmp_path / "made.gguf")
    assert values_of(plain)["words"] == WORDS
    assert values_of(fast) == values_of(plain)
    assert contents_of(fast) == contents_of(plain)
    pairs = fast.fields["pairs"]
    assert [int(pairs.parts[place][0]) for place in pairs.data] == [1, 2, 3, 4]
    assert [tensor.name for tensor in fast.tensors] == ["token_embd.weight"]
    assert np.array_equal(fast.tensors[0].data, plain.tensors[0].data)


def test_a_file_is_parsed_once_and_the_package_is_left_as_it_was(tmp_path: Path) -> None:
    write_file(tmp_path / "made.gguf", gguf.GGUFEndian.LITTLE)
    plain = (gguf.GGUFReader, gguf.get_tensor_name_map)
    with parsed_once():
        assert gguf.GGUFReader(tmp_path / "made.gguf") is gguf.GGUFReader(tmp_path / "made.gguf")
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert names is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert names.get_name("model.layers.1.mlp.up_proj") == "blk.1.ffn_up"
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == plain


@pytest.mark.parametrize("field", [b"words", b"scores"])
def test_a_file_that_ends_within_an_array_is_refused(field: bytes, tmp_path: Path) -> None:
    write_file(tmp_path / "made.gguf", gguf.GGUFEndian.LITTLE)
    content = (tmp_path / "made.gguf").read_bytes()
    values = content.index(field) + len(field) + 4 + 4 + 8
    (tmp_path / "cut.gguf").write_bytes(content[: values + 6])
    with parsed_once(), pytest.raises((ValueError, struct.error)):
        gguf.GGUFReader(tmp_path / "cut.gguf")
