"""One forward pass: a batch in, logits of the rows that are sampled out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdray.engine.attention import ATTENTION
from pdray.engine.attention.base import AttentionBackend, AttentionParams, GroupAttention
from pdray.engine.attention.routing import AttentionCall, attend_by_heads, serving
from pdray.engine.batch import Batch
from pdray.engine.config import EngineConfig
from pdray.engine.cuda_graphs import Recorder
from pdray.engine.decode_graphs import DecodeGraphs
from pdray.engine.head import HiddenStates, Score
from pdray.engine.model import LoadedModel
from pdray.engine.upload import upload
from pdray.kvcache.layout import KVLayout
from pdray.kvcache.storage import KVStorage, LayerCache


def drop_logits(part: slice, logits: torch.Tensor) -> None:
    """For a rank that has computed its part of them."""


class Runner:
    def __init__(self, loaded: LoadedModel, storage: KVStorage, backend: AttentionBackend) -> None:
        self.storage = storage
        self._loaded = loaded
        self._backend = backend
        self._device = loaded.model.device
        self._caches = {
            layer.module: cache for layer, cache in zip(loaded.layers, storage.layers, strict=True)
        }
        self._decode_graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def record_decodes(
        self, recorder: Recorder, *, max_batch_size: int, max_sequence_tokens: int
    ) -> None:
        """Slow. From then on, steps of decodes alone are repeated from recordings."""
        self._decode_graphs = DecodeGraphs(
            self._forward,
            recorder,
            self._backend,
            self.storage,
            self._device,
            max_batch_size=max_batch_size,
            max_sequence_tokens=max_sequence_tokens,
            model_name=type(self._loaded.model).__name__,
        )

    @torch.inference_mode()
    def run(self, batch: Batch, score: Score = drop_logits) -> torch.Tensor:
        """[S, V] for ``batch.sampled_rows``, good until the next run; the step's keys and values
        are in the arena then. ``score`` gets the logits of ``batch.scored_rows`` before that."""
        self.storage.copy(batch.copies)
        self.storage.clear(batch.partial_block_ids)
        if self._decode_graphs is not None:
            logits_SV = self._decode_graphs.run(batch)
            if logits_SV is not None:
                return logits_SV
        plans = [self._backend.plan(group, self._device) for group in batch.groups]
        input_ids_T = upload(batch.input_ids_T, self._device)
        positions_T = upload(batch.positions_T, self._device)
        rows_S = upload(batch.sampled_rows, self._device)
        if not len(batch.scored_rows):
            return self._forward(input_ids_T, positions_T, rows_S, plans)
        hidden = HiddenStates(self._loaded.model, self._loaded.model.get_decoder())
        logits_SV = hidden.capture(lambda: self._forward(input_ids_T, positions_T, rows_S, plans))
        logits_SV = logits_SV.clone()  # the output layer runs again
        scored_rows = upload(batch.scored_rows, self._device)
        hidden.score(input_ids_T, scored_rows, logits_SV.shape[1], score)
        return logits_SV

    def _forward(
        self,
        input_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        rows_S: torch.Tensor,
        plans: Sequence[GroupAttention],
    ) -> torch.Tensor:
        with serving(ForwardPass(self._caches, plans)):
            return self._loaded.logits(input_ids_T, positions_T, rows_S)


class ForwardPass:
    """Serves the attention layers of one step from the paged cache."""

    def __init__(
        self, caches: dict[torch.nn.Module, LayerCache], plans: Sequence[GroupAttention]
    ) -> None:
        self._caches = caches
        self._plans = plans

    def attend(self, call: AttentionCall) -> torch.Tensor:
        return attend_by_heads(self, call)

    def attend_heads(
        self,
        module: torch.nn.Module,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        cache = self._caches[module]
        plan = self._plans[cache.group_id]
        return plan.attend(cache, query_NTH, key_KTH, value_KTH, params).flatten(1)


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
