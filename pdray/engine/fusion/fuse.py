"""Replaces the parts of a loaded model by fused ones, each checked against what it replaces.

No model is known by name. A layer that has another form, or whose fused twin gives other
numbers, stays as it is, but for the norms and MLPs in it that are known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pdray.engine.attention.base import AttentionParams
from pdray.engine.attention.routing import AttentionCall, AttentionServer, attend_by_heads, serving
from pdray.engine.fusion.base import FusedKernels
from pdray.engine.fusion.decoder_layer import FusedDecoderLayer
from pdray.engine.fusion.gated_mlp import FusedMLP
from pdray.engine.fusion.norms import FusedNorm, find_norm
from pdray.engine.probe import ProbedLayer

logger = logging.getLogger(__name__)

SAMPLE_TOKENS = 7
MAX_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of the fused result against the plain one, as a share of its size."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of a module, and what came of it."""

    args: tuple[object, ...]
    kwargs: dict[str, object]
    output: object

    def agrees(self, module: nn.Module) -> bool:
        if not isinstance(self.output, torch.Tensor):
            return False
        fused = module(*self.args, **self.kwargs)
        plain = self.output.float()
        error = (fused.float() - plain).norm() / plain.norm()
        return bool(error < MAX_ERRORS[self.output.dtype])


@torch.inference_mode()
def fuse_model(model: nn.Module, layers: tuple[ProbedLayer, ...], kernels: FusedKernels) -> None:
    """Frees the replaced weights layer by layer."""
    server = PlainAttention()
    samples = _take_samples(model, server)
    num_fused = 0
    for layer in layers:
        with serving(server):
            num_fused += _fuse_layer(model, layer, samples, kernels)
    with serving(server):
        _replace(model, lambda name, module: _fused_part(module, samples.get(name), kernels))
    logger.info("fused %d of %d layers: model=%s", num_fused, len(layers), type(model).__name__)


def _fuse_layer(
    model: nn.Module, layer: ProbedLayer, samples: dict[str, Sample], kernels: FusedKernels
) -> bool:
    name = _parent_name(model, layer.module)
    plain = model.get_submodule(name)
    fused = FusedDecoderLayer.of(plain, layer, kernels)
    if fused is None or name not in samples or not samples[name].agrees(fused):
        return False
    _put(model, name, fused)
    # The plain attention goes on as the layer's name only: its weights are in the fused one.
    layer.module._modules.clear()
    return True


def _fused_part(
    module: nn.Module, sample: Sample | None, kernels: FusedKernels
) -> nn.Module | None:
    if next(module.children(), None) is None:
        norm = find_norm(module)
        return None if norm is None else FusedNorm(norm, kernels)
    if sample is None:
        return None
    mlp = FusedMLP.of(module, kernels)
    return mlp if mlp is not None and sample.agrees(mlp) else None


def _replace(model: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    for name, module in list(model.named_modules()):
        fused = None if isinstance(module, FusedNorm | FusedMLP) else make(name, module)
        if fused is not None:
            _put(model, name, fused)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent_name, _, child_name = name.rpartition(".")
    setattr(model.get_submodule(parent_name), child_name, module)


def _parent_name(model: nn.Module, child: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if module is child]
    return names[0].rpartition(".")[0]


def _take_samples(model: nn.Module, server: AttentionServer) -> dict[str, Sample]:
    """A call of each decoder layer and of each of its parts, out of one forward pass."""
    samples: dict[str, Sample] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
        ) -> None:
            samples[name] = Sample(args, kwargs, output)

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True)
        for name, module in model.named_modules()
        if next(module.children(), None) is not None and module is not model
    ]
    generator = torch.Generator().manual_seed(0)
    embedding = next(each for each in model.modules() if isinstance(each, nn.Embedding))
    size = (1, SAMPLE_TOKENS)
    tokens = torch.randint(embedding.num_embeddings, size, generator=generator)
    tokens = tokens.to(embedding.weight.device)
    positions = torch.arange(SAMPLE_TOKENS, device=tokens.device)[None]
    with serving(server):
        model(
            input_ids=tokens,
            position_ids=positions,
            use_cache=False,
            # By its place: of a mere number of rows it takes a slice, whose product with a large
            # output layer in bf16 takes a second.
            logits_to_keep=positions[0, -1:],
        )
    for handle in handles:
        handle.remove()
    return samples


class PlainAttention:
    """Serves the samples: causal, and the same for the plain modules and the fused ones."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        return attend_by_heads(self, call)

    def attend_heads(
        self,
        module: nn.Module,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        out_NTH = F.scaled_dot_product_attention(
            query_NTH[None],
            key_KTH[None],
            value_KTH[None],
            is_causal=True,
            scale=params.scaling,
            enable_gqa=True,
        )[0]
        return out_NTH.transpose(0, 1).flatten(1)
