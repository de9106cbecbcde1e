"""One forward pass: a batch in, logits of the rows that are sampled out."""

from __future__ import annotations

import torch

from pdray.engine.attention import ATTENTION
from pdray.engine.attention.base import AttentionBackend, AttentionParams, GroupAttention
from pdray.engine.attention.routing import AttentionCall, serving
from pdray.engine.batch import Batch
from pdray.engine.config import EngineConfig
from pdray.engine.model import LoadedModel
from pdray.kvcache.layout import KVLayout
from pdray.kvcache.storage import KVStorage, LayerCache


class Runner:
    def __init__(self, loaded: LoadedModel, storage: KVStorage, backend: AttentionBackend) -> None:
        self.storage = storage
        self._loaded = loaded
        self._backend = backend
        self._device = loaded.model.device
        self._caches = {
            layer.module: cache for layer, cache in zip(loaded.layers, storage.layers, strict=True)
        }

    @torch.inference_mode()
    def run(self, batch: Batch) -> torch.Tensor:
        """[S, V] for ``batch.sampled_rows``; the step's keys and values are in the arena then."""
        self.storage.clear(batch.partial_block_ids)
        plans = [self._backend.plan(group, self._device) for group in batch.groups]
        with serving(ForwardPass(self._caches, plans)):
            return self._loaded.logits(
                torch.from_numpy(batch.input_ids_T).to(self._device),
                torch.from_numpy(batch.positions_T).to(self._device),
                torch.from_numpy(batch.sampled_rows).to(self._device),
            )


class ForwardPass:
    """Serves the attention layers of one step from the paged cache."""

    def __init__(
        self, caches: dict[torch.nn.Module, LayerCache], plans: list[GroupAttention]
    ) -> None:
        self._caches = caches
        self._plans = plans

    def make_mask(self, mask_function: object) -> None:
        """None: which keys a query sees is in the group's plan."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        cache = self._caches[call.module]
        params = AttentionParams(call.scaling, call.softcap, call.sinks)
        plan = self._plans[cache.group_id]
        out_TNH = plan.attend(cache, call.query[0], call.key[0], call.value[0], params)
        return out_TNH[None]


def make_layout(loaded: LoadedModel, config: EngineConfig) -> KVLayout:
    """Of what this rank keeps, which with tensor parallelism is a part of every block."""
    return KVLayout.of_layers(
        [layer.kv for layer in loaded.layers],
        model_digest=loaded.digest,
        block_size=config.block_size,
        dtype=config.dtype,
        tensor_parallel=config.tensor_parallel,
    )


def make_runner(loaded: LoadedModel, config: EngineConfig, layout: KVLayout) -> Runner:
    """With a KV arena as large as the config allows."""
    storage = KVStorage(layout, config.kv_cache_bytes // layout.block_bytes, config.device)
    backend = ATTENTION.get(config.attention_backend)(config.device, config.dtype)
    return Runner(loaded, storage, backend)
