"""The API from end to end in one process: the openai client over HTTP, and real workers behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from pdray.frontend.text import Tokenizer
from pdray.local import LocalCluster
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import IngressState, make_api
from tests.http_server import serving
from tests.local_cluster import config_of, until_idle
from tests.overviews import overview, scaling

MODEL = "tiny"


@pytest.fixture(scope="session")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return Tokenizer(tiny_model_path)


@pytest.fixture
async def cluster(tiny_model_path: Path) -> AsyncIterator[LocalCluster]:
    async with LocalCluster(config_of(tiny_model_path), tiny_model_path) as cluster:
        yield cluster
        await until_idle(cluster)
        assert cluster.frontend.num_in_flight == 0


@pytest.fixture
def service(cluster: LocalCluster, tokenizer: Tokenizer) -> CompletionService:
    return CompletionService(
        cluster.frontend, tokenizer, model_name=MODEL, limits=cluster.controller.limits
    )


@pytest.fixture
async def client(
    cluster: LocalCluster, service: CompletionService
) -> AsyncIterator[openai.AsyncOpenAI]:
    async def missing() -> str | None:
        return None

    async def metrics_text() -> bytes:
        return cluster.frontend.metrics.text()

    state = IngressState(
        service=service,
        missing=missing,
        metrics_text=metrics_text,
        overview=overview,
        scaling=scaling,
        max_ongoing_requests=64,
        keys=None,
    )
    async with (
        serving(make_api(state)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
