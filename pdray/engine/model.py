"""Loads a transformers model, routes its attention to pdray, and refuses what cannot be served.

No code here is for one model: what must be known of the layers, the probe finds out.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from transformers import AttentionInterface, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from pdray.core.errors import UnsupportedModelError
from pdray.engine.attention.routing import (
    PROBED_ROUTE_NAME,
    ROUTE_NAME,
    route_attention,
    route_mask,
    serving,
)
from pdray.engine.checkpoint import open_checkpoint
from pdray.engine.fusion import find_kernels
from pdray.engine.fusion.fuse import fuse_model
from pdray.engine.linear import PackedLinear, pack_linears
from pdray.engine.pretrained import is_quantized, read_config, read_model, reading
from pdray.engine.probe import PROBE_TOKENS, Probe, ProbedLayer
from pdray.engine.tensor_parallel.group import RankGroup
from pdray.engine.tensor_parallel.sharding import check_divides, load_sharded

AttentionInterface.register(ROUTE_NAME, route_attention)
AttentionInterface.register(PROBED_ROUTE_NAME, route_attention)
AttentionMaskInterface.register(PROBED_ROUTE_NAME, route_mask)

# Where a checkpoint came from and how it is run: says nothing of what its KV is.
_VOLATILE_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode whose attention goes to the current ``serving`` server."""

    path: Path
    model: PreTrainedModel
    layers: tuple[ProbedLayer, ...]
    digest: str
    eos_token_ids: frozenset[int]
    max_positions: int | None
    """None where any position will do."""

    def logits(
        self, input_ids_T: torch.Tensor, positions_T: torch.Tensor, rows_S: torch.Tensor
    ) -> torch.Tensor:
        """[S, V] of the given rows, good until the next call; S may be 0."""
        output = self.model(
            input_ids=input_ids_T[None],
            position_ids=positions_T[None],
            use_cache=False,
            logits_to_keep=rows_S,
        )
        logits_SV: torch.Tensor = output.logits[0]
        return logits_SV


def load_model(
    path: Path, *, dtype: str, device: str, group: RankGroup | None = None
) -> LoadedModel:
    """``path`` is a Hugging Face folder, or a GGUF file. With a group, the part of this rank;
    every rank calls it. Raises UnsupportedModelError with the reason, and ConfigError for files
    that are missing or cut off."""
    checkpoint = open_checkpoint(path)
    with reading(checkpoint):
        config = read_config(checkpoint)
        _check_config(config)
        if group is None:
            model = read_model(checkpoint, config, dtype, device)
        else:
            model = load_sharded(partial(read_model, checkpoint, config, dtype), group)
            cast(torch.nn.Module, model).to(device)
    # A quantization's kernels may only find out when they run that they cannot.
    with reading(checkpoint) if is_quantized(model) else nullcontext():
        return adopt_model(model, config, path, group)


def adopt_model(
    model: PreTrainedModel, config: PreTrainedConfig, path: Path, group: RankGroup | None = None
) -> LoadedModel:
    """Takes over a model in evaluation mode, on its device, that was made from ``config``.
    ``path`` has its tokenizer and generation config, where it has any. Raises
    UnsupportedModelError."""
    _check_model(model)
    if group is not None:
        pack_linears(model)
        group.connect()
    layers = _probe(model)
    _check_modalities(model)
    if group is None and not is_quantized(model):
        # A rank's modules add up the ranks' parts, which no fused layer does.
        kernels = find_kernels(model.device, model.dtype)
        if kernels is not None:
            fuse_model(model, layers, kernels)
        pack_linears(model)
    output_layer = model.get_output_embeddings()
    if isinstance(output_layer, PackedLinear):
        output_layer.reuse_output()
    return LoadedModel(
        path=path,
        model=model,
        layers=layers,
        digest=model_digest(config),
        eos_token_ids=_eos_token_ids(path, config),
        max_positions=_max_positions(config),
    )


def check_ranks(path: Path, num_ranks: int) -> None:
    """Raises UnsupportedModelError or ConfigError where the model cannot be split so."""
    checkpoint = open_checkpoint(path)
    with reading(checkpoint):
        config = read_config(checkpoint)
    _check_config(config)
    if checkpoint.is_gguf or getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"{path}: tensor_parallel: {num_ranks}: a GGUF or quantized checkpoint is not split; "
            "accepted: 1"
        )
    check_divides(config, num_ranks)


def model_digest(config: PreTrainedConfig) -> str:
    """Equal for checkpoints of one architecture and size, wherever they lie."""
    known = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE_KEYS}
    text = json.dumps(known, sort_keys=True, default=str)
    return f"{config.model_type}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _check_config(config: PreTrainedConfig) -> None:
    """What can be refused before a weight is read."""
    name = config.model_type
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; pdray serves decoders")
    other_inputs = [key for key in config.sub_configs if key != "text_config"]
    if other_inputs:
        raise UnsupportedModelError(
            f"{name} has multimodal input ({', '.join(other_inputs)}); pdray serves text"
        )
    layer_types = set(getattr(config.get_text_config(), "layer_types", None) or ())
    state_layers = sorted(
        kind for kind in layer_types if "attention" not in kind or "linear" in kind
    )
    if state_layers:
        raise UnsupportedModelError(
            f"{name} has layers of linear attention or state space ({', '.join(state_layers)})"
        )


def _check_model(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model._is_stateful:
        raise UnsupportedModelError(f"{name} keeps a state (linear attention or state space)")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{name} cannot be asked for some positions' logits only")
    try:
        model.set_attn_implementation(PROBED_ROUTE_NAME)
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: {error}") from error
    if model.config.get_text_config()._attn_implementation != PROBED_ROUTE_NAME:
        raise UnsupportedModelError(f"{name} does not use transformers' attention interface")


def _probe(model: PreTrainedModel) -> tuple[ProbedLayer, ...]:
    probe = Probe()
    tokens = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=model.device)
    positions = torch.arange(PROBE_TOKENS, device=model.device)[None]
    with torch.inference_mode(), serving(probe):
        model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=positions[0, -1:],
        )
    model.set_attn_implementation(ROUTE_NAME)
    num_layers = model.config.get_text_config().num_hidden_layers
    if len(probe.layers) != num_layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {len(probe.layers)} of {num_layers} layers call "
            "transformers' attention interface; the others keep their context another way"
        )
    return tuple(probe.layers)


def _check_modalities(model: PreTrainedModel) -> None:
    # Of the decoder itself: a text-only head may inherit the word of its multimodal sibling.
    modalities = cast(str | tuple[str, ...], model.base_model.input_modalities)
    if set([modalities] if isinstance(modalities, str) else modalities) != {"text"}:
        raise UnsupportedModelError(
            f"{type(model).__name__} has multimodal input {modalities}; pdray serves text"
        )


def _eos_token_ids(path: Path, config: PreTrainedConfig) -> frozenset[int]:
    eos = config.get_text_config().eos_token_id
    if (path / "generation_config.json").exists():
        eos = GenerationConfig.from_pretrained(path).eos_token_id or eos
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def _max_positions(config: PreTrainedConfig) -> int | None:
    """Where rotary frequencies depend on the longest sequence of a batch, only its first, plain
    range gives each sequence the same result in any batch."""
    text_config = config.get_text_config()
    limit: int | None = getattr(text_config, "max_position_embeddings", None)
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    for rope in nested or [parameters]:
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings") or limit
            limit = min(filter(None, (limit, original)), default=None)
    return limit
