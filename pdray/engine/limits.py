"""What an engine's settings allow, and those that cannot be."""

from __future__ import annotations

from pdray.core.errors import ConfigError
from pdray.engine.block_needs import max_sequence_tokens
from pdray.engine.config import EngineConfig
from pdray.engine.model import LoadedModel
from pdray.kvcache.layout import KVLayout


def check_limits(loaded: LoadedModel, config: EngineConfig) -> None:
    """Raises ConfigError."""
    if config.max_tokens_per_step < config.max_batch_size:
        raise ConfigError(
            f"max_tokens_per_step: {config.max_tokens_per_step} is less than max_batch_size "
            f"({config.max_batch_size}), so a step could not decode the whole batch"
        )
    if loaded.max_positions is not None and config.max_model_len > loaded.max_positions:
        raise ConfigError(
            f"max_model_len: {config.max_model_len} is past the model's positions; "
            f"accepted: up to {loaded.max_positions}"
        )


def longest_sequence(layout: KVLayout, num_blocks: int, config: EngineConfig) -> int:
    """Tokens of the longest one that the blocks hold. Raises ConfigError where that is none."""
    longest = max_sequence_tokens(
        layout.groups,
        num_blocks=num_blocks,
        max_chunk=config.max_tokens_per_step,
        block_size=config.block_size,
        limit=config.max_model_len,
    )
    if longest < 2:
        raise ConfigError(
            f"kv_cache_bytes: {config.kv_cache_bytes} holds {num_blocks} blocks of "
            f"{layout.block_bytes} bytes; accepted: enough for one for each of the "
            f"model's {len(layout.groups)} KV groups, and as many again for real use"
        )
    return longest
