"""The servers that benchmarks compare, on the same two cores: pdray's two workers of one thread
each, or vLLM's one server with two."""

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
from pdray.model_source import resolve_model

NO_TARGET_S = 1000.0
"""Of ``slo.itl_s``: steps take as long as their tokens do."""

_START_S = 300.0
_VLLM_SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
_VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def config_of(system: str, itl_s: float) -> dict[str, object]:
    """``pooled``, ``soft``, ``auto``, or ``chunks-N``: both phases on each worker, with steps of
    N tokens. ``one-soft`` has one worker of two threads. Raises ValueError for any other."""
    if system == "pooled":
        return _pooled(itl_s)
    if system == "one-soft":
        return _mixed("soft", itl_s, max_tokens_per_step=512, num_workers=1, num_threads=2)
    if system in ("soft", "auto"):
        return _mixed(system, itl_s, max_tokens_per_step=512)
    word, _, size = system.partition("-")
    if word != "chunks" or not size.isdigit():
        accepted = "pooled, soft, one-soft, auto, chunks-N, vllm, vllm-N"
        raise ValueError(f"system {system!r}; accepted: {accepted} (N tokens a step)")
    return _mixed("soft", NO_TARGET_S, max_tokens_per_step=int(size))


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
    model = resolve_model("demo", print)
    command = [*_VLLM_SERVE, str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "4096", "--max-num-seqs", "32"]
    _, _, size = system.partition("-")
    return [vllm, *command, *(["--max-num-batched-tokens", size] if size else [])]


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
