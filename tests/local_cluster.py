"""Requests through a LocalCluster: what the tests of the data path share."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from pdray.config import PdrayConfig, parse_config
from pdray.core.request import FinishReason, Request, SamplingParams
from pdray.frontend.frontend import Frontend
from pdray.local import LocalCluster
from pdray.worker.worker import Worker


def config_of(model_path: Path, **changes: object) -> PdrayConfig:
    """One prefill and one decode worker, with every prompt computed on the former; ``decode`` and
    the like replace engine settings."""
    engine = {
        "block_size": 16,
        "kv_cache_bytes": "4MiB",
        "max_tokens_per_step": 64,
        "max_batch_size": 8,
        "max_model_len": 512,
        "num_threads": 1,
    }
    prefill = engine | changes.pop("prefill", {})  # type: ignore[operator]
    decode = engine | changes.pop("decode", {})  # type: ignore[operator]
    data = {
        "model": str(model_path),
        "node_groups": {"laptop": {}},
        "pools": {
            "prefill": {"role": "prefill", "node_groups": ["laptop"], "engine": prefill},
            "decode": {"role": "decode", "node_groups": ["laptop"], "engine": decode},
        },
        "transfer": {"transport": "nixl"},
        "controller": {"placement": "least_loaded"},
    }
    return parse_config(data | changes)


def request_of(
    prompt: list[int],
    max_tokens: int = 16,
    *,
    request_id: str = "r",
    temperature: float = 0.0,
    cache_salt: str | None = None,
    session_id: str | None = None,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        output_token_ids=(),
        sampling=SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=None,
            top_p=1.0,
            seed=7,
            stop_token_ids=(),
            ignore_eos=True,
        ),
        cache_salt=cache_salt,
        session_id=session_id,
    )


async def tokens_of(cluster: LocalCluster, request: Request) -> list[int]:
    tokens: list[int] = []
    finish_reason: FinishReason | None = None
    async for delta in cluster.frontend.generate(request):
        tokens += delta.token_ids
        finish_reason = delta.finish_reason
    assert finish_reason is FinishReason.LENGTH
    return tokens


def num_placed_again(frontend: Frontend) -> float:
    return _counted(frontend, "pdray_requests_placed_again_total")


def num_migrated(frontend: Frontend) -> float:
    """Requests that have moved, and have said something since."""
    return _counted(frontend, "pdray_migration_pause_seconds_count")


def _counted(frontend: Frontend, name: str) -> float:
    lines = frontend.metrics.text().decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}{{"))
    return float(line.split()[-1])


async def until_idle(cluster: LocalCluster) -> None:
    """Blocks go back a moment after the last token: the acknowledgement is under way."""
    for _ in range(500):
        if all(is_idle(worker) for worker in cluster.workers):
            return
        await asyncio.sleep(0.01)
    raise AssertionError([worker.snapshot() for worker in cluster.workers])


def is_idle(worker: Worker) -> bool:
    worker.engine.pool.check_integrity()
    snapshot = worker.snapshot()
    num_unused = snapshot.num_free_blocks + snapshot.num_cached_blocks
    assert worker.engine.num_unaccounted_blocks == 0
    return num_unused == snapshot.num_blocks and snapshot.num_waiting == 0


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, 200) for _ in range(length)] for length in lengths]
