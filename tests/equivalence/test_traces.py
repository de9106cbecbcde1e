"""Spans of a request that ran on two workers, as a collector gets them."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from pdray.local import LocalCluster
from pdray.serve.completion import CompletionService
from pdray.serve.ingress import IngressState, make_api
from pdray.serve.trace_exporter import open_tracing
from tests.equivalence.conftest import MODEL
from tests.http_server import serving
from tests.local_cluster import random_prompts
from tests.overviews import overview, scaling
from tests.trace_collector import collecting

ROUNDING_NS = 100


async def test_phases_follow_each_other_inside_the_requests_span(
    cluster: LocalCluster, service: CompletionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing() -> str | None:
        return None

    async def metrics_text() -> bytes:
        return b""

    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        tracing = open_tracing()
        assert tracing is not None
        state = IngressState(
            service=service,
            missing=missing,
            metrics_text=metrics_text,
            overview=overview,
            scaling=scaling,
            max_ongoing_requests=8,
            keys=None,
            around=tracing.around,
        )
        body = {"model": MODEL, "prompt": random_prompts([100])[0], "max_tokens": 8, "stream": True}
        async with serving(make_api(state)) as url, httpx.AsyncClient(timeout=60.0) as http:
            await http.post(f"{url}/v1/completions", json=body)
        await asyncio.to_thread(tracing.close)
    spans = [
        span
        for export in collector.exports
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    (call,) = (span for span in spans if span.name == "POST /v1/completions")
    phases = [span for span in spans if span is not call]
    assert {span.name: worker_of(span.attributes) for span in phases} == {
        "queued": None,
        "prefill_wait": "prefill-0-local",
        "prefill": "prefill-0-local",
        "transfer": "decode-0-local",
        "decode_wait": "decode-0-local",
        "decode": "decode-0-local",
    }
    assert all(span.parent_span_id == call.span_id for span in phases)
    at = call.start_time_unix_nano
    for span in phases:
        assert at - ROUNDING_NS <= span.start_time_unix_nano <= span.end_time_unix_nano
        at = span.end_time_unix_nano
    assert at <= call.end_time_unix_nano


def worker_of(attributes: object) -> str | None:
    values = {each.key: each.value.string_value for each in attributes}  # type: ignore[attr-defined]
    return values.get("pdray.worker_id")
