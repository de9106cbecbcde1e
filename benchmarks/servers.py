"""The servers that benchmarks compare, on the same two cores: pdray's two workers of one thread
each, or vLLM's one server with two, or its pair of one each."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.idle import stop, wait_for_health
from benchmarks.processes import MARK
from benchmarks.vllm_pair import VLLM_SERVE
from pdray.model_source import resolve_model

NO_TARGET_S = 1000.0
"""Of ``slo.itl_s``: steps take as long as their tokens do."""

_START_S = 300.0
_VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def config_of(system: str, itl_s: float) -> dict[str, object]:
    """``pooled``, ``soft``, ``auto``, or ``chunks-N``: both phases on each worker, with steps of
    N tokens. ``one-soft`` and ``one-chunks-N`` have one worker of two threads. Raises ValueError
    for any other."""
    if system == "pooled":
        return _pooled(itl_s)
    if system == "auto":
        return _mixed("auto", itl_s, max_tokens_per_step=512)
    kind = system.removeprefix("one-")
    num_workers, num_threads = (2, 1) if kind == system else (1, 2)
    word, _, size = kind.partition("-")
    if word == "chunks" and size.isdigit():
        itl_s = NO_TARGET_S
    elif kind != "soft":
        accepted = "pooled, auto, soft, chunks-N, one-soft, one-chunks-N, vllm, vllm-N, vllm-pair"
        raise ValueError(f"system {system!r}; accepted: {accepted} (N tokens a step)")
    return _mixed(
        "soft",
        itl_s,
        max_tokens_per_step=int(size or 512),
        num_workers=num_workers,
        num_threads=num_threads,
    )


@contextmanager
def serving(
    system: str, *, itl_s: float, folder: Path, port: int, vllm: Path | None
) -> Iterator[str]:
    """The URL of a server that is up. ``vllm`` is the Python of an environment that has it. Raises
    ValueError where it does not start; what it said is in ``folder``."""
    mark = uuid.uuid4().hex
    log_path = folder / f"{system}.log"
    with log_path.open("ab") as log:
        server = subprocess.Popen(
            _command(system, itl_s, folder, port, vllm),
            stdout=log,
            stderr=log,
            env={**os.environ, **_VLLM_ENVIRONMENT, MARK: mark},
        )
        try:
            base_url = f"http://127.0.0.1:{port}"
            asyncio.run(wait_for_health(f"{base_url}/health", server, _START_S))
            yield base_url
        except ValueError as error:
            said = log_path.read_text(errors="replace")[-2000:]
            raise ValueError(f"{system}: {error}\n{said}") from error
        finally:
            stop(server, mark)


def _command(
    system: str, itl_s: float, folder: Path, port: int, vllm: Path | None
) -> list[str | Path]:
    if not system.startswith("vllm"):
        path = folder / f"{system}.yaml"
        path.write_text(yaml.safe_dump(config_of(system, itl_s)))
        return [sys.executable, "-m", "pdray", "serve", path, "--port", str(port)]
    if vllm is None:
        raise ValueError(f"{system}: name a Python that has vLLM with --vllm")
    serve = [str(resolve_model("demo", print)), "--dtype", "float32", "--enforce-eager"]
    serve += ["--max-model-len", "4096", "--max-num-seqs", "32"]
    _, _, kind = system.partition("-")
    if kind == "pair":
        pair = [sys.executable, "-m", "benchmarks.vllm_pair", "--port", str(port)]
        return [*pair, "--vllm", vllm, "--", *serve]
    if kind:
        serve += ["--max-num-batched-tokens", kind]
    return [vllm, *VLLM_SERVE, *serve, "--host", "127.0.0.1", "--port", str(port)]


def _pooled(itl_s: float) -> dict[str, object]:
    pool: dict[str, object] = {"node_groups": ["machine"], "engine": _engine(512)}
    pools = {"prefill": pool | {"role": "prefill"}, "decode": pool | {"role": "decode"}}
    return _config("pooled", itl_s, pools)


def _mixed(
    mode: str,
    itl_s: float,
    *,
    max_tokens_per_step: int,
    num_workers: int = 2,
    num_threads: int = 1,
) -> dict[str, object]:
    pool = {
        "role": "mixed",
        "replicas": num_workers,
        "node_groups": ["machine"],
        "engine": _engine(max_tokens_per_step) | {"num_threads": num_threads},
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
