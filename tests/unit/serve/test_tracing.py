"""Spans of requests over scripted tokens, as OpenTelemetry's SDK exports them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pdray.core.errors import ConfigError, WorkerLostError
from pdray.core.request import FinishReason, Request, WorkerId
from pdray.core.timeline import Phase, PhaseName, Timeline
from pdray.serve.trace_exporter import open_tracing
from pdray.serve.tracing import Tracing
from tests.scripted_source import Script, ScriptedSource, delta, spelled
from tests.trace_collector import collecting
from tests.unit.serve.conftest import MODEL, OpenApi, OpenServer

COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 8}
ANSWER = [ord(char) - ord("!") for char in "abc"]  # the tiny vocabulary starts at "!"
VARIABLES = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_SERVICE_NAME",
)


@dataclass(frozen=True, slots=True)
class Spans:
    tracing: Tracing
    exporter: InMemorySpanExporter

    def ended(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """The only call's, and those below it."""
        *phases, call = self.exporter.get_finished_spans()
        assert call.context is not None
        for phase in phases:
            assert phase.parent is not None
            assert phase.parent.span_id == call.context.span_id
        return call, phases


@pytest.fixture
def spans() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    yield Spans(tracing, exporter)
    tracing.close()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has these of OpenTelemetry's variables, and no others."""

    def use(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


def timeline() -> Timeline:
    """Of a request that has come just now."""
    return Timeline(
        arrived_at=time.monotonic(),
        phases=(
            Phase(name=PhaseName.QUEUED, start_s=0.0, duration_s=0.25, worker_id=None),
            Phase(name=PhaseName.PREFILL, start_s=0.25, duration_s=0.5, worker_id=WorkerId("p")),
        ),
    )


def timed(request: Request) -> Script:
    return [replace(each, timeline=timeline) for each in spelled(ANSWER, FinishReason.LENGTH)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_has_a_span_with_its_phases_below(
    open_api: OpenApi, spans: Spans, stream: bool
) -> None:
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        answer = await client.post("/v1/completions", json=COMPLETION | {"stream": stream, "n": 2})
    assert answer.status_code == 200
    call, phases = spans.ended()
    assert (call.name, call.kind, call.parent) == ("POST /v1/completions", SpanKind.SERVER, None)
    assert call.attributes is not None
    assert call.attributes["http.response.status_code"] == 200
    assert call.attributes["http.route"] == "/v1/completions"
    assert call.status.status_code is StatusCode.UNSET
    assert [(phase.name, dict(phase.attributes or {})) for phase in phases] == [
        ("queued", {"pdray.choice": 0}),
        ("prefill", {"pdray.choice": 0, "pdray.worker_id": "p"}),
        ("queued", {"pdray.choice": 1}),
        ("prefill", {"pdray.choice": 1, "pdray.worker_id": "p"}),
    ]
    assert call.resource.attributes["service.name"] == "pdray"


async def test_phases_lie_where_they_were(open_api: OpenApi, spans: Spans) -> None:
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        await client.post("/v1/completions", json=COMPLETION)
    call, (queued, prefill) = spans.ended()
    times = [call.start_time, queued.start_time, queued.end_time, prefill.end_time]
    came, start, middle, end = (each for each in times if each is not None)
    assert came <= start
    assert (middle - start) / 1e9 == pytest.approx(0.25, abs=1e-5)
    assert prefill.start_time == pytest.approx(middle, abs=100)
    assert (end - middle) / 1e9 == pytest.approx(0.5, abs=1e-5)


async def test_the_callers_trace_goes_on(open_api: OpenApi, spans: Spans) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        await client.post("/v1/completions", json=COMPLETION, headers=headers)
    call, phases = spans.ended()
    assert call.parent is not None
    assert f"{call.parent.span_id:016x}" == span_id
    for span in (call, *phases):
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == trace_id


async def test_one_that_its_caller_does_not_sample_leaves_none(
    open_api: OpenApi, spans: Spans
) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        await client.post("/v1/completions", json=COMPLETION, headers=headers)
    assert spans.exporter.get_finished_spans() == ()


async def test_a_read_leaves_none(open_api: OpenApi, spans: Spans) -> None:
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        await client.get("/health")
    assert spans.exporter.get_finished_spans() == ()


async def test_a_refused_request_is_no_error_of_ours(open_api: OpenApi, spans: Spans) -> None:
    async with open_api(ScriptedSource(timed), around=spans.tracing.around) as client:
        await client.post("/v1/completions", json=COMPLETION | {"n": 0})
    call, phases = spans.ended()
    assert call.attributes is not None
    assert call.attributes["http.response.status_code"] == 400
    assert call.status.status_code is StatusCode.UNSET
    assert phases == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_fails_is_an_error_without_phases(
    open_api: OpenApi, spans: Spans, stream: bool
) -> None:
    source = ScriptedSource(lambda request: [delta(ANSWER[0]), WorkerLostError("gone")])
    async with open_api(source, around=spans.tracing.around) as client:
        await client.post("/v1/completions", json=COMPLETION | {"stream": stream})
    call, phases = spans.ended()
    assert call.status.status_code is StatusCode.ERROR
    assert call.attributes is not None
    assert not call.attributes["pdray.is_cancelled"]
    assert phases == []


async def test_a_client_that_leaves_is_no_error(open_server: OpenServer, spans: Spans) -> None:
    never = asyncio.Event()
    source = ScriptedSource(lambda request: [delta(ANSWER[0]), never])
    async with (
        open_server(source, around=spans.tracing.around) as url,
        httpx.AsyncClient() as client,
    ):
        body = COMPLETION | {"stream": True}
        async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            await anext(response.aiter_bytes())
        while not spans.exporter.get_finished_spans():
            await asyncio.sleep(0.01)
    call, phases = spans.ended()
    assert call.attributes is not None
    assert call.attributes["pdray.is_cancelled"]
    assert call.status.status_code is StatusCode.UNSET
    assert phases == []


async def test_spans_reach_a_collector(open_api: OpenApi, environment: Callable[..., None]) -> None:
    with collecting() as collector:
        environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="chats")
        tracing = open_tracing()
        assert tracing is not None
        async with open_api(ScriptedSource(timed), around=tracing.around) as client:
            await client.post("/v1/completions", json=COMPLETION)
        await asyncio.to_thread(tracing.close)
    (export,) = collector.exports
    assert collector.paths == ["/v1/traces"]
    (resource_spans,) = export.resource_spans
    names = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
    assert names["service.name"] == "chats"
    (scope_spans,) = resource_spans.scope_spans
    assert sorted(span.name for span in scope_spans.spans) == [
        "POST /v1/completions",
        "prefill",
        "queued",
    ]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_exported_where_nobody_asks(
    environment: Callable[..., None], variables: dict[str, str]
) -> None:
    environment(**variables)
    assert open_tracing() is None


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER = 'zipkin': accepted: otlp"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc': accepted: http/protobuf",
        ),
    ],
)
def test_what_cannot_be_exported_to_is_refused(
    environment: Callable[..., None], variables: dict[str, str], problem: str
) -> None:
    environment(**variables)
    with pytest.raises(ConfigError, match=problem):
        open_tracing()


@pytest.mark.parametrize(
    "missing",
    ["opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export"],
)
def test_missing_packages_are_named_at_start(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{missing} is not installed.*pdray\[otel\]"):
        open_tracing()
