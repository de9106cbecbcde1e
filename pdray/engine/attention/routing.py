"""The way from a transformers model's attention layers to whoever serves them now.

A model calls one registered function, whichever engine runs it; the context variable says
whose forward pass this thread is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch

from pdray.engine.attention.base import AttentionParams

ROUTE_NAME = "pdray"
PROBED_ROUTE_NAME = "pdray_probed"
"""The same, and transformers asks for the layers' masks too, which takes it a wait for the
device in every forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """One layer's call: query [1, N, T, H], key and value [1, K, T, H]."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attention_mask: torch.Tensor | None
    scaling: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None
    other_tensors: tuple[str, ...]
    """Names of further tensors that the layer passed."""


class AttentionServer(Protocol):
    def attend(self, call: AttentionCall) -> torch.Tensor:
        """Returns [1, T, N, value head dim]."""


class HeadsServer(AttentionServer, Protocol):
    def attend_heads(
        self,
        module: torch.nn.Module,
        query_NTH: torch.Tensor,
        key_KTH: torch.Tensor,
        value_KTH: torch.Tensor,
        params: AttentionParams,
    ) -> torch.Tensor:
        """The same for a fused layer, which stands for ``module``: [T, N * value head dim]."""


@runtime_checkable
class ProbingServer(AttentionServer, Protocol):
    def make_mask(self, mask_function: object) -> torch.Tensor:
        """What the layers get as their attention mask; ``mask_function`` is transformers' own,
        from (batch, head, query position, key position) to bool."""


_server: ContextVar[AttentionServer] = ContextVar("attention_server")


@contextmanager
def serving(server: AttentionServer) -> Iterator[None]:
    """Within it, this thread's attention layers are served by ``server``."""
    token = _server.set(server)
    try:
        yield
    finally:
        _server.reset(token)


def route_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for a layer; the signature is its own."""
    call = AttentionCall(
        module=module,
        query=query,
        key=key,
        value=value,
        attention_mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
        other_tensors=tuple(
            name for name, other in others.items() if isinstance(other, torch.Tensor)
        ),
    )
    return _server.get().attend(call), None


def attend_heads(
    module: torch.nn.Module,
    query_NTH: torch.Tensor,
    key_KTH: torch.Tensor,
    value_KTH: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    """What a fused layer calls."""
    server = cast(HeadsServer, _server.get())
    return server.attend_heads(module, query_NTH, key_KTH, value_KTH, params)


def attend_by_heads(server: HeadsServer, call: AttentionCall) -> torch.Tensor:
    """A layer's own call, served as a fused layer's is."""
    params = AttentionParams(call.scaling, call.softcap, call.sinks)
    query, key, value = call.query[0], call.key[0], call.value[0]
    out_TX = server.attend_heads(call.module, query, key, value, params)
    return out_TX.view(1, len(out_TX), len(query), -1)


def route_mask(*args: object, **kwargs: object) -> torch.Tensor:
    """What transformers calls to make a mask; the signature is its own."""
    server = _server.get()
    assert isinstance(server, ProbingServer)
    return server.make_mask(kwargs["mask_function"])
