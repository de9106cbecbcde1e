"""The servers that ``benchmarks/interference.py`` compares: each a config of the same two workers
on one core each."""

from __future__ import annotations

from pathlib import Path

import yaml

NO_TARGET_S = 1000.0
"""Of ``slo.itl_s``: steps take as long as their tokens do."""


def config_of(system: str, itl_s: float) -> dict[str, object]:
    """``pooled``, ``soft``, ``auto``, or ``chunks-N``: both phases on each worker, with steps of
    N tokens. Raises KeyError for any other."""
    if system == "pooled":
        return _pooled(itl_s)
    if system in ("soft", "auto"):
        return _mixed(system, itl_s, max_tokens_per_step=512)
    word, _, size = system.partition("-")
    if word != "chunks" or not size.isdigit():
        raise KeyError(f"{system!r}; accepted: pooled, soft, auto, chunks-N")
    return _mixed("soft", NO_TARGET_S, max_tokens_per_step=int(size))


def write_config(system: str, itl_s: float, folder: Path) -> Path:
    path = folder / f"{system}.yaml"
    path.write_text(yaml.safe_dump(config_of(system, itl_s)))
    return path


def _pooled(itl_s: float) -> dict[str, object]:
    pool: dict[str, object] = {"node_groups": ["machine"], "engine": _engine(512)}
    pools = {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}}
    return _config("pooled", itl_s, pools)


def _mixed(mode: str, itl_s: float, *, max_tokens_per_step: int) -> dict[str, object]:
    pool = {
        "role": "mixed",
        "replicas": 2,
        "node_groups": ["machine"],
        "engine": _engine(max_tokens_per_step),
    }
    return _config(mode, itl_s, {"mixed": pool})


def _config(mode: str, itl_s: float, pools: dict[str, dict[str, object]]) -> dict[str, object]:
    return {
        "model": "demo",
        "dtype": "float32",
        "mode": mode,
        "node_groups": {"machine": {"resources_per_worker": {"CPU": 1}}},
        "pools": pools,
        "slo": {"ttft_s": 10.0, "itl_s": itl_s},
    }


def _engine(max_tokens_per_step: int) -> dict[str, object]:
    return {
        "kv_cache_bytes": "1GiB",
        "max_tokens_per_step": max_tokens_per_step,
        "max_batch_size": 16,
        "max_model_len": 4096,
        "num_threads": 1,
    }
