"""Two applications of ``mode: service`` in one process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from pdray.config import PdrayConfig, parse_config
from pdray.core.cluster_secret import ClusterSecret, owner_of, read_secrets
from pdray.core.parked import LeaseKey, ParkedPrompt
from pdray.core.placement import WorkerAddress
from pdray.core.request import Request
from pdray.frontend.text import Tokenizer
from pdray.local import LocalCluster
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import IngressState, make_api
from pdray.serve.keys import KeyRing
from pdray.serve.phase_routes import max_output_tokens, phase_routes
from tests.http_server import serving
from tests.local_cluster import config_of, until_idle
from tests.overviews import overview, scaling

SECRET = "5" * 64


def phase_config(model_path: Path, secret_file: Path, phase: str, **changes: object) -> PdrayConfig:
    """One worker; ``engine``, ``handles`` and ``pool`` go over what is usual."""
    pooled = config_of(model_path).model_dump(mode="json")
    pool = pooled["pools"][phase] | changes.pop("pool", {})  # type: ignore[operator]
    pool["engine"] |= changes.pop("engine", {})
    handles = {"secret_file": str(secret_file)} | changes.pop("handles", {})  # type: ignore[operator]
    data = pooled | {"mode": "service", "pools": {phase: pool}, "handles": handles}
    return parse_config(data | changes)


@dataclass(frozen=True, slots=True)
class Service:
    prefill: LocalCluster
    decode: LocalCluster
    secrets: tuple[ClusterSecret, ...]

    def claim_of(self, parked: ParkedPrompt) -> tuple[WorkerAddress, LeaseKey]:
        assert parked.lease is not None
        return owner_of(parked.lease, self.secrets), parked.lease.key

    def owner(self, parked: ParkedPrompt) -> WorkerAddress | None:
        return None if parked.lease is None else owner_of(parked.lease, self.secrets)

    async def resume(self, request: Request, parked: ParkedPrompt) -> list[int]:
        tokens: list[int] = []
        async for delta in self.decode.frontend.resume(request, parked, self.owner(parked)):
            tokens += delta.token_ids
        return tokens

    async def until_idle(self) -> None:
        await asyncio.gather(until_idle(self.prefill), until_idle(self.decode))
        for worker in (*self.prefill.workers, *self.decode.workers):
            assert worker.engine.num_unaccounted_blocks == 0


@asynccontextmanager
async def running_service(
    model_path: Path,
    folder: Path,
    *,
    prefill: dict[str, object] | None = None,
    decode: dict[str, object] | None = None,
) -> AsyncIterator[Service]:
    secret_file = folder / "secret"
    secret_file.write_text(f"{SECRET}\n")
    of_prefill = phase_config(model_path, secret_file, "prefill", **(prefill or {}))
    of_decode = phase_config(model_path, secret_file, "decode", **(decode or {}))
    async with (
        LocalCluster(of_prefill, model_path, frontend_id="prefill-frontend") as prefill_cluster,
        LocalCluster(of_decode, model_path, frontend_id="decode-frontend") as decode_cluster,
    ):
        yield Service(prefill_cluster, decode_cluster, read_secrets(secret_file))


@dataclass(frozen=True, slots=True)
class ServiceUrls:
    prefill: str
    decode: str


@asynccontextmanager
async def serving_service(
    service: Service,
    tokenizer: Tokenizer,
    model_name: str,
    keys: KeyRing | None = None,
    between: Callable[[str], FastAPI] | None = None,
) -> AsyncIterator[ServiceUrls]:
    """Both applications' own routes, on a uvicorn each. ``between`` makes, of the one's URL, what
    the other takes for it."""
    async with AsyncExitStack() as stack:
        prefill = api_of(service.prefill, tokenizer, model_name, keys)
        prefill_url = await stack.enter_async_context(serving(prefill))
        seen_url = prefill_url
        if between is not None:
            seen_url = await stack.enter_async_context(serving(between(prefill_url)))
        decode = api_of(service.decode, tokenizer, model_name, keys, seen_url)
        yield ServiceUrls(prefill_url, await stack.enter_async_context(serving(decode)))


def api_of(
    cluster: LocalCluster,
    tokenizer: Tokenizer,
    model_name: str,
    keys: KeyRing | None,
    prefill_url: str | None = None,
) -> FastAPI:
    async def missing() -> str | None:
        return None

    async def metrics_text() -> bytes:
        return cluster.frontend.metrics.text()

    data = cluster.config.model_dump(mode="json")
    config = parse_config(data | {"serve": data["serve"] | {"prefill_url": prefill_url}})
    completions = CompletionService(
        cluster.frontend,
        tokenizer,
        model_name=model_name,
        limits=cluster.controller.limits,
        max_output_tokens=max_output_tokens(config),
    )
    state = IngressState(
        service=completions,
        missing=missing,
        metrics_text=metrics_text,
        overview=overview,
        scaling=scaling,
        max_ongoing_requests=64,
        keys=keys,
    )
    return make_api(state, phase_routes(config, cluster.frontend, completions, tokenizer))
