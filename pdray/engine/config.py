"""What an engine is told about itself: its limits, its device and its numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One worker's engine settings, with node group overrides applied and sizes in bytes.

    ``block_size``, ``max_tokens_per_step`` and ``max_model_len`` count tokens; ``num_threads``
    None leaves torch's own choice. With ``tensor_parallel`` ranks, ``kv_cache_bytes`` and
    ``num_threads`` are each rank's. ``itl_s`` is how long a step with decodes in it should take at
    most; with None they take as long as they take. Who has waited ``max_seat_wait_s`` for a place
    in a batch that keeps to it gets one all the same.
    """

    block_size: int
    kv_cache_bytes: int
    max_tokens_per_step: int
    max_batch_size: int
    max_model_len: int
    attention_backend: str
    device: str
    dtype: str
    num_threads: int | None
    tensor_parallel: int
    itl_s: float | None = None
    max_seat_wait_s: float = 2.0
