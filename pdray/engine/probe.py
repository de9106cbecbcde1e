"""What a model's attention layers are like, found out by one tiny forward pass.

No model is known by name: every layer's call shows its shapes, and the mask that the model
asks for shows which positions it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch

from pdray.core.errors import UnsupportedModelError
from pdray.engine.attention.base import AttentionParams
from pdray.engine.attention.routing import AttentionCall
from pdray.kvcache.layout import LayerKV

PROBE_TOKENS = 4
FAR = 1 << 20
"""A query position past any window."""
HARMLESS_TENSORS = frozenset({"position_ids", "cache_position"})

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class ProbedLayer:
    """``params`` are what the module said of its scores: the same in every call."""

    module: torch.nn.Module
    num_heads: int
    kv: LayerKV
    params: AttentionParams


class Probe:
    """An attention server that writes down the layers in order, and returns zeros."""

    def __init__(self) -> None:
        self.layers: list[ProbedLayer] = []
        self._mask_functions: list[tuple[torch.Tensor, MaskFunction]] = []

    def make_mask(self, mask_function: object) -> torch.Tensor:
        # The tensor is a ticket: the layer that hands it in again was to use this function.
        ticket = torch.zeros(1, 1, PROBE_TOKENS, PROBE_TOKENS)
        self._mask_functions.append((ticket, cast(MaskFunction, mask_function)))
        return ticket

    def attend(self, call: AttentionCall) -> torch.Tensor:
        name = type(call.module).__name__
        if any(layer.module is call.module for layer in self.layers):
            raise UnsupportedModelError(f"{name} attends twice in one forward pass")
        unknown = [each for each in call.other_tensors if each not in HARMLESS_TENSORS]
        if unknown:
            raise UnsupportedModelError(
                f"{name} gives its attention {unknown}, which pdray's attention does not know"
            )
        if call.key.shape[2] != PROBE_TOKENS or call.query.shape[2] != PROBE_TOKENS:
            raise UnsupportedModelError(f"{name} attends to other tokens than its own input's")
        _, num_kv_heads, _, k_head_dim = call.key.shape
        kv = LayerKV(
            sliding_window=self._span(call, name),
            num_kv_heads=num_kv_heads,
            k_head_dim=k_head_dim,
            v_head_dim=call.value.shape[-1],
        )
        _, num_heads, num_tokens, _ = call.query.shape
        params = AttentionParams(call.scaling, call.softcap, call.sinks)
        self.layers.append(ProbedLayer(call.module, num_heads, kv, params))
        return call.query.new_zeros(1, num_tokens, num_heads, kv.v_head_dim)

    def _span(self, call: AttentionCall, name: str) -> int | None:
        if call.attention_mask is None:
            if not getattr(call.module, "is_causal", True):
                raise UnsupportedModelError(f"{name} is not causal")
            return call.sliding_window
        for ticket, mask_function in self._mask_functions:
            if ticket is call.attention_mask:
                return attention_span(mask_function, name)
        raise UnsupportedModelError(f"{name} attends with a mask of its own making")


def attention_span(mask_function: MaskFunction, name: str) -> int | None:
    """The sliding window that the function describes, None for plain causal attention. Raises
    UnsupportedModelError for any other pattern."""
    try:
        if _sees(mask_function, FAR, FAR + 1):
            raise UnsupportedModelError(f"{name} is not causal")
        span = _find_window(mask_function)
        is_known = all(
            _sees(mask_function, query, key) == (0 <= query - key < (span or query + 1))
            for query, key in _sample_pairs(span)
        )
    except IndexError:
        is_known = False
    if not is_known:
        raise UnsupportedModelError(
            f"{name} sees another pattern of positions than all before it, or a sliding window"
        )
    return span


def _find_window(mask_function: MaskFunction) -> int | None:
    if _sees(mask_function, FAR, 0):
        return None
    low, high = 0, FAR  # distances: low is seen, high is not
    while high - low > 1:
        middle = (low + high) // 2
        if _sees(mask_function, FAR, FAR - middle):
            low = middle
        else:
            high = middle
    return high


def _sample_pairs(span: int | None) -> list[tuple[int, int]]:
    window = span or 4096
    queries = [0, 1, 2, window - 1, window, window + 1, 3 * window // 2, 2 * window, 12_345, FAR]
    distances = [-1, 0, 1, 2, window // 2, window - 2, window - 1, window, window + 1, 2 * window]
    return [(q, q - d) for q in queries for d in distances if q >= d]


def _sees(mask_function: MaskFunction, query: int, key: int) -> bool:
    zero = torch.tensor(0)
    return bool(mask_function(zero, zero, torch.tensor(query), torch.tensor(key)))
