"""What an engine is made of, as it comes off the disk."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pdray.engine.config import EngineConfig
from pdray.engine.host import prepare_host
from pdray.engine.model import LoadedModel, check_ranks, load_model
from pdray.engine.tensor_parallel.ranks import Ranks


def load_parts(model_path: Path, config: EngineConfig) -> tuple[LoadedModel, Ranks | None]:
    """The model and, where it is split, the processes that have the other parts: the caller's to
    close. Slow. Raises UnsupportedModelError, ConfigError and RankLostError."""
    prepare_host(config)
    load = partial(load_model, model_path, dtype=config.dtype, device=config.device)
    if config.tensor_parallel == 1:
        return load(), None
    check_ranks(model_path, config.tensor_parallel)
    ranks = Ranks(model_path, config)
    try:
        return load(group=ranks.group), ranks
    except BaseException:
        ranks.close()
        raise
