"""Loads a rank's part of a model after transformers' own tensor-parallel plan.

transformers reads the slices. What it runs them with (DTensors, and a default process group for
each process) does not fit here, so its modules are made plain again, with pdray's exchanges.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from pdray.core.errors import ConfigError, UnsupportedModelError
from pdray.engine.tensor_parallel.group import RankGroup
from pdray.engine.tensor_parallel.layers import (
    GatheredColumns,
    SummedEmbedding,
    SummedRows,
    sum_output,
)

_default_group = threading.Lock()
"""Torch has one default process group for a process."""


def check_divides(config: PreTrainedConfig, size: int) -> None:
    """Raises UnsupportedModelError or ConfigError where the model cannot run on so many ranks."""
    text_config = config.get_text_config()
    if not text_config.base_model_tp_plan:
        raise UnsupportedModelError(
            f"tensor_parallel: {size}: transformers has no tensor-parallel plan for the layers of "
            f"{config.model_type}; accepted: 1"
        )
    counts = {
        name: count
        for name in ("num_attention_heads", "num_key_value_heads")
        if isinstance(count := getattr(text_config, name, None), int)
    }
    for name, count in counts.items():
        if count % size:
            common = math.gcd(*counts.values())
            accepted = [n for n in range(1, common + 1) if common % n == 0]
            raise ConfigError(
                f"tensor_parallel: {size} does not divide the model's {name} = {count}; "
                f"accepted: {', '.join(map(str, accepted))}"
            )


def load_sharded(read: Callable[..., PreTrainedModel], group: RankGroup) -> PreTrainedModel:
    """``read(distributed=...)`` reads the slices. Raises UnsupportedModelError for a plan that
    asks for what is not done here."""
    with _pretended_default_group(group):
        model = read(distributed=DistributedConfig(tp_size=group.size))
    _make_plain(model)
    _exchange(model, group)
    return model


@contextmanager
def _pretended_default_group(group: RankGroup) -> Iterator[None]:
    """Loading moves nothing between ranks, so transformers need only believe in the others."""
    with _default_group:
        dist.init_process_group("fake", store=FakeStore(), rank=group.rank, world_size=group.size)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _make_plain(model: nn.Module) -> None:
    """The rank's slices as plain parameters, shared ones still shared, in plain modules."""
    locals_of: dict[int, nn.Parameter] = {}
    for module in model.modules():
        module.__dict__.pop("forward", None)  # transformers' exchanges, over the class's own
        # Typed as plain parameters, which a DTensor is none of.
        parameters = cast(dict[str, torch.Tensor | None], module._parameters)
        for name, parameter in list(parameters.items()):
            if isinstance(parameter, DTensor):
                if id(parameter) not in locals_of:
                    data = parameter.to_local().detach()
                    locals_of[id(parameter)] = nn.Parameter(data, requires_grad=False)
                parameters[name] = locals_of[id(parameter)]


def _exchange(model: PreTrainedModel, group: RankGroup) -> None:
    """Puts the plan's exchanges round the modules that it names."""
    plan = model.tp_plan
    output_layer = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style is None:
            continue
        if style not in _STYLES:
            raise UnsupportedModelError(
                f"{type(model).__name__}: {name} is to be split the way {style!r}, which pdray "
                f"does not know; accepted: tensor_parallel: 1"
            )
        replacement = _STYLES[style](module, group, module is output_layer)
        if replacement is not module:
            parent_name, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent_name), attribute, replacement)


def _keep(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    return module


def _sum_rows(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    assert isinstance(module, nn.Linear), f"{type(module).__name__} is no linear layer"
    _keep(module, group, is_output_layer)
    return SummedRows(module, group, splits_input=False)


def _split_and_sum_rows(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    assert isinstance(module, nn.Linear), f"{type(module).__name__} is no linear layer"
    _keep(module, group, is_output_layer)
    return SummedRows(module, group, splits_input=True)


def _gather(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    assert isinstance(module, nn.Linear), f"{type(module).__name__} is no linear layer"
    width = module.out_features
    _keep(module, group, is_output_layer)
    # Only rank 0 samples.
    return GatheredColumns(module, group, width, at_lead=is_output_layer)


def _sum_embedding(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    assert isinstance(module, nn.Embedding), f"{type(module).__name__} is no embedding"
    if module.padding_idx is not None:
        module.padding_idx = None  # matters to gradients only, and is no row of a slice
    return SummedEmbedding(module, group, module.num_embeddings)


def _gather_embedding(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    assert isinstance(module, nn.Embedding), f"{type(module).__name__} is no embedding"
    return GatheredColumns(module, group, module.embedding_dim, at_lead=False)


def _sum_output(module: nn.Module, group: RankGroup, is_output_layer: bool) -> nn.Module:
    sum_output(module, group)
    return module


_STYLES: dict[str, Callable[[nn.Module, RankGroup, bool], nn.Module]] = {
    "colwise": _keep,
    "packed_colwise": _keep,
    "local_params": _keep,
    "replicate": _keep,
    # These two are of gradients.
    "replicated_with_grad_allreduce": _keep,
    "mla_kv_a_proj": _keep,
    "rowwise": _sum_rows,
    "rowwise_rep": _split_and_sum_rows,
    "rowwise_split_input": _split_and_sum_rows,
    "colwise_rep": _gather,
    "colwise_gather_output": _gather,
    "embedding_rowwise": _sum_embedding,
    "embedding_colwise": _gather_embedding,
    "all_reduce": _sum_output,
    "moe_tp_experts": _sum_output,
}
"""What transformers' names for ways to split a module mean here, once its slice is loaded."""
