"""The API over scripted tokens: in process, and behind a real uvicorn on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from pdray.frontend.text import Tokenizer
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import IngressState, make_api
from pdray.serve.keys import KeyRing
from tests.http_server import serving
from tests.overviews import overview, scaling
from tests.scripted_source import ScriptedSource

MODEL = "tiny"

OpenApi = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
OpenServer = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture(scope="session")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return Tokenizer(tiny_model_path)


def state_of(
    source: ScriptedSource,
    tokenizer: Tokenizer,
    *,
    max_ongoing: int = 64,
    write_s: float = 60.0,
    keys: KeyRing | None = None,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
) -> IngressState:
    async def missing() -> str | None:
        return None if source.is_up else "decode worker 0 (loading)"

    async def metrics_text() -> bytes:
        return b"pdray_up 1\n"

    service = CompletionService(source, tokenizer, model_name=MODEL, limits=source.limits)
    return IngressState(
        service=service,
        missing=missing,
        metrics_text=metrics_text,
        overview=overview,
        scaling=scaling,
        max_ongoing_requests=max_ongoing,
        keys=keys,
        write_timeout_s=write_s,
        around=around,
    )


@pytest.fixture
def open_api(tokenizer: Tokenizer) -> OpenApi:
    """``async with open_api(source) as client``: no sockets."""

    @contextlib.asynccontextmanager
    async def open_client(
        source: ScriptedSource, **settings: Any
    ) -> AsyncGenerator[httpx.AsyncClient, None]:
        api = make_api(state_of(source, tokenizer, **settings))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client

    return open_client


@pytest.fixture
def open_server(tokenizer: Tokenizer) -> OpenServer:
    """``async with open_server(source) as url``: a real uvicorn on loopback."""

    @contextlib.asynccontextmanager
    async def serve(source: ScriptedSource, **settings: Any) -> AsyncGenerator[str, None]:
        api = make_api(state_of(source, tokenizer, **settings))
        async with serving(api) as url:
            yield url

    return serve
