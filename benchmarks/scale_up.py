"""From a step of load to the first token on the worker that it brought, by each rung of the ladder:
a role flip, a warm standby, a new worker.

Each server has one core for each worker. The new worker's first token is found in the timelines
that every answer carries; the moments in between in what the server says of itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import aiohttp
import yaml

from benchmarks.idle import stop, wait_for_health
from benchmarks.processes import MARK
from benchmarks.prompts import make_prompt
from benchmarks.result_file import save_result
from pdray.serve.free_port import free_port

MODEL = "gemma-3-270m"
_LOAD_S = 90.0
_START_S = 300.0
_VOCAB_SIZE = 200_000
_NUM_BEFORE = 2
_ENGINE = {
    "kv_cache_bytes": "512MiB",
    "max_tokens_per_step": 256,
    "max_batch_size": 16,
    "max_model_len": 2048,
    "num_threads": 1,
}
_POLICY = {
    "min_replicas": 1,
    "max_replicas": 2,
    "upscale_delay_s": 1.0,
    "downscale_delay_s": 600.0,
    "metrics_interval_s": 0.25,
    "look_back_period_s": 1.0,
    "signals": {"queue_length": 4.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """``pool`` is where the load goes; ``clients`` ask for ``max_tokens`` after so many tokens."""

    pools: Mapping[str, object]
    roles: Mapping[str, object] | None
    phase: str
    prompt_tokens: int
    max_tokens: int


@dataclass(slots=True, kw_only=True)
class Found:
    """Seconds since the load began; None for what did not happen."""

    decided_s: float | None = None
    ready_s: float | None = None
    first_token_s: float | None = None


def _pool(role: str, **more: object) -> dict[str, object]:
    return {"role": role, "node_groups": ["machine"], "engine": _ENGINE, **more}


def rungs() -> dict[str, Rung]:
    decoding = partial(Rung, roles=None, phase="decode", prompt_tokens=32, max_tokens=256)
    return {
        "role flip": Rung(
            pools={"prefill": _pool("prefill"), "decode": _pool("decode", replicas=2)},
            roles={"prefill": {"min": 1, "max": 2}, "decode": {"min": 1, "max": 2}},
            phase="prefill",
            prompt_tokens=1500,
            max_tokens=4,
        ),
        "standby": decoding(
            pools={
                "prefill": _pool("prefill"),
                "decode": _pool("decode", autoscaling=_POLICY | {"standby_replicas": 1}),
            }
        ),
        "new worker": decoding(
            pools={"prefill": _pool("prefill"), "decode": _pool("decode", autoscaling=_POLICY)}
        ),
    }


def config_of(rung: Rung) -> dict[str, object]:
    return {
        "model": "demo",
        "dtype": "float32",
        "node_groups": {"machine": {"resources_per_worker": {"CPU": 1}}},
        "pools": dict(rung.pools),
        "roles": rung.roles,
        "slo": {"ttft_s": 1.0, "itl_s": 0.2},
        "controller": {"placement": "least_loaded", "max_queued_requests": 1024},
    }


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The URL of a server with this config, whose own words are on this process's stderr."""
    port, mark = free_port(), uuid.uuid4().hex
    command = [sys.executable, "-m", "pdray", "serve", str(path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, MARK: mark})
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(wait_for_health(f"{url}/health", server, _START_S))
        yield url
    finally:
        stop(server, mark)


async def measure(url: str, rung: Rung, rng: random.Random, num_clients: int) -> Found:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(base_url=url, timeout=timeout) as http:
        before = set[str]()
        for _ in range(_NUM_BEFORE):  # one after the other: these have work for one worker alone
            before |= {worker for worker, _ in await _ask(http, rung, rng)}
        began_at = time.time()
        found = Found()
        is_over = asyncio.Event()
        tasks = [
            asyncio.create_task(_ask_on(http, rung, rng, before, found, began_at, is_over))
            for _ in range(num_clients)
        ]
        watch = asyncio.create_task(_watch(http, rung, len(before), found, began_at))
        try:
            await asyncio.wait_for(is_over.wait(), _LOAD_S)
        except TimeoutError:
            print("no token of a new worker came")
        for task in (*tasks, watch):
            task.cancel()
        await asyncio.gather(*tasks, watch, return_exceptions=True)
    return found


async def _num_serving(http: aiohttp.ClientSession, phase: str) -> int:
    """Workers that take work of this phase; a standby is ready, and takes none."""
    async with http.get("/dashboard/data") as answer:
        now = await answer.json()
    scaled = [each["decision"] for each in now["scaling"] if each["decision"]["pool"] == phase]
    if scaled:
        return int(scaled[0]["current"])
    return sum(w["state"] == "ready" and w["role"] in (phase, "mixed") for w in now["workers"])


async def _watch(
    http: aiohttp.ClientSession, rung: Rung, num_before: int, found: Found, began_at: float
) -> None:
    while found.ready_s is None:
        async with http.get("/dashboard/scaling") as answer:
            decisions = await answer.json()
        more = [
            each["unix_time"]
            for each in decisions
            if each["decision"]["allowed"] > each["decision"]["previous"]
            and each["unix_time"] > began_at
        ]
        if more and found.decided_s is None:
            found.decided_s = more[0] - began_at
        if await _num_serving(http, rung.phase) > num_before:
            found.ready_s = time.time() - began_at
        await asyncio.sleep(0.1)


async def _ask_on(
    http: aiohttp.ClientSession,
    rung: Rung,
    rng: random.Random,
    before: set[str],
    found: Found,
    began_at: float,
    is_over: asyncio.Event,
) -> None:
    while not is_over.is_set():
        sent_s = time.time() - began_at
        for worker, after_s in await _ask(http, rung, rng):
            if worker not in before:
                token_s = sent_s + after_s
                found.first_token_s = min(found.first_token_s or token_s, token_s)
                is_over.set()


async def _ask(
    http: aiohttp.ClientSession, rung: Rung, rng: random.Random
) -> list[tuple[str, float]]:
    """The workers that did the rung's phase of a request, each with when its first token came,
    in seconds after the request was sent."""
    body = {
        "model": MODEL,
        "prompt": make_prompt("token-ids", rung.prompt_tokens, _VOCAB_SIZE, rng),
        "max_tokens": rung.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    headers = {"X-Pdray-Timeline": "1"}
    async with http.post("/v1/completions", json=body, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {text[:200]}")
        (timeline,) = json.loads(answer.headers["X-Pdray-Timeline"])
    found, at_s = [], 0.0
    for phase in timeline["phases"]:
        # A prompt's first token comes at the phase's end, a decode's soon after its begin.
        token_s = at_s + (phase["ms"] / 1e3 if rung.phase == "prefill" else 0.0)
        at_s += phase["ms"] / 1e3
        if phase["name"] == rung.phase:
            found.append((phase["worker"], token_s))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rungs", nargs="+", choices=list(rungs()), default=list(rungs()))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    found: dict[str, dict[str, float | None]] = {}
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="pdray-scale-up-") as folder:
        for name in args.rungs:
            path = Path(folder) / f"{name.replace(' ', '-')}.yaml"
            path.write_text(yaml.safe_dump(config_of(rungs()[name])))
            with served(path) as url:
                result = asyncio.run(measure(url, rungs()[name], rng, args.clients))
            found[name] = asdict(result)
            print(name, *(f"{k} {v:.2f}" for k, v in found[name].items() if v is not None))
    print(save_result("scale_up", args, seconds_since_the_load_began=found))


if __name__ == "__main__":
    main()
