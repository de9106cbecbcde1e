"""Has transformers read a checkpoint, straight to its device, and says in words why it cannot."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging

from pdray.core.errors import UnsupportedModelError
from pdray.engine.checkpoint import Checkpoint
from pdray.gguf_parsing import parsed_once
from pdray.kvcache.storage import TORCH_DTYPES

logging.disable_progress_bar()  # a worker's log is no terminal


@contextlib.contextmanager
def reading(checkpoint: Checkpoint) -> Iterator[None]:
    """Put it round all that reads one checkpoint: what transformers raises of one that it cannot
    read becomes an UnsupportedModelError, and a GGUF file is parsed once."""
    try:
        with parsed_once() if checkpoint.is_gguf else contextlib.nullcontext():
            yield
    except torch.OutOfMemoryError:
        raise  # not the checkpoint's fault
    except (ImportError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise UnsupportedModelError(f"{checkpoint.path}: {_in_one_line(error)}") from error


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Code that the checkpoint brings is never run."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(**_source(checkpoint))
    return config


def read_model(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    dtype: str,
    device: str = "cpu",
    distributed: DistributedConfig | None = None,
) -> PreTrainedModel:
    """In evaluation mode, all its weights on ``device``; on the CPU, those that are stored in
    ``dtype`` stay mapped from their files. With ``distributed``, a rank's slices of them, on the
    CPU. Raises UnsupportedModelError."""
    _check_quantization(config)
    checkpoint.read_ahead()
    options: dict[str, Any] = {"config": config, "dtype": TORCH_DTYPES[dtype]}
    if distributed is not None:
        options["distributed_config"] = distributed
    elif device != "cpu":
        options["device_map"] = {"": device}
    if checkpoint.is_gguf:
        gguf = GgufConfig(gguf_file=checkpoint.path.name, dequantize=True)
        options["quantization_config"] = gguf
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        **_source(checkpoint), **options, output_loading_info=True
    )
    model: PreTrainedModel = loaded[0]
    found: Mapping[str, Any] = loaded[1]
    if missing := sorted(found["missing_keys"]):
        # transformers would go on with random numbers in their place.
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UnsupportedModelError(
            f"{checkpoint.path}: {len(missing)} weights of the model are not in it: {names}"
        )
    if model.dtype != TORCH_DTYPES[dtype]:
        raise UnsupportedModelError(
            f"{checkpoint.path}: its quantization computes in {model.dtype}, not in {dtype}; "
            "accepted: that dtype in the config"
        )
    model.eval().requires_grad_(False)
    return model


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether its linear layers are its quantization's own, and to be left alone: those of a
    model that was unpacked to plain numbers are not."""
    return bool(getattr(model, "is_quantized", False))


def _source(checkpoint: Checkpoint) -> dict[str, Any]:
    source: dict[str, Any] = {"trust_remote_code": False}
    if checkpoint.is_gguf:
        source["gguf_file"] = checkpoint.path.name
    folder = checkpoint.path.parent if checkpoint.is_gguf else checkpoint.path
    return source | {"pretrained_model_name_or_path": folder}


def _check_quantization(config: PreTrainedConfig) -> None:
    """transformers warns of a method that it does not know, and goes on without."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and not AutoHfQuantizer.supports_quant_method(quantization):
        raise UnsupportedModelError(
            f"{config.model_type} is quantized by {quantization.get('quant_method')!r}, "
            "which transformers does not know"
        )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
