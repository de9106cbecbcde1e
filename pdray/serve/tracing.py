"""A span for each request, with one below it for each of its phases: OpenTelemetry's.

To be imported only where spans are wanted: its packages are optional (``pdray[otel]``).
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdray import __version__
from pdray.core.clock import Clock, WallClock
from pdray.core.timeline import Timeline
from pdray.serve.call_timelines import CallTimelines


class Tracing:
    """``clock`` is the one that timelines are on."""

    def __init__(self, processor: SpanProcessor, clock: Clock | None = None) -> None:
        """The processor is closed with this."""
        self.clock = clock or WallClock()
        self._provider = TracerProvider(resource=_resource())
        self._provider.add_span_processor(processor)
        self.tracer = self._provider.get_tracer("pdray", __version__)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, with a span of each POST."""
        return _TracedCalls(app, self)

    def close(self) -> None:
        """Sends what is left; blocks for as long."""
        self._provider.shutdown()


class _TracedCalls:
    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        call = _Call(self._tracing, scope)

        async def receive_watched() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not call.is_answered:
                call.has_left = True
            return message

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
            elif message["type"] == "http.response.body":
                call.is_answered = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive_watched, send_watched)
        except Exception as error:
            call.span.record_exception(error)
            call.status = 500  # what is answered further outside
            raise
        finally:
            call.end()


class _Call:
    """One span's way: from the request's head until its answer has been sent or given up."""

    def __init__(self, tracing: Tracing, scope: Scope) -> None:
        self._tracing = tracing
        self._scope = scope
        # All of one call by one clock, so that no step of the wall clock tears it apart.
        self._epoch_ns = time.time_ns() - round(tracing.clock.now() * 1e9)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.span = tracing.tracer.start_span(
            scope["method"],
            context=TraceContextTextMapPropagator().extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
            start_time=self._ns(tracing.clock.now()),
        )
        self.status: int | None = None
        self.is_answered = False
        self.has_left = False

    def end(self) -> None:
        """A phase is known only of a choice that has ended well."""
        timelines: CallTimelines | None = self._scope["state"].get("timelines")
        if (route := self._scope.get("route")) is not None:
            self.span.update_name(f"{self._scope['method']} {route.path}")
            self.span.set_attribute("http.route", route.path)
        if self.status is not None:
            self.span.set_attribute("http.response.status_code", self.status)
        is_cut = self.status in {None, 200} and timelines is not None and not timelines.is_whole
        self.span.set_attribute("pdray.is_cancelled", is_cut and self.has_left)
        if self.status is not None and self.status >= 500:
            self.span.set_status(Status(StatusCode.ERROR))
        elif is_cut and not self.has_left:
            self.span.set_status(Status(StatusCode.ERROR, "the answer is not whole"))
        if timelines is not None and self.span.is_recording():
            for choice, timeline in sorted(timelines.by_choice.items()):
                self._add_phases(choice, timeline)
        self.span.end(self._ns(self._tracing.clock.now()))

    def _add_phases(self, choice: int, timeline: Timeline) -> None:
        parent = trace.set_span_in_context(self.span)
        for phase in timeline.phases:
            start_at = timeline.arrived_at + phase.start_s
            attributes: dict[str, str | int] = {"pdray.choice": choice}
            if phase.worker_id is not None:
                attributes["pdray.worker_id"] = phase.worker_id
            span: Span = self._tracing.tracer.start_span(
                phase.name, parent, attributes=attributes, start_time=self._ns(start_at)
            )
            span.end(self._ns(start_at + phase.duration_s))

    def _ns(self, at: float) -> int:
        """Since 1970."""
        return self._epoch_ns + round(at * 1e9)


def _resource() -> Resource:
    """As the environment describes it, and named after us where it says nothing."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "pdray"}))
    return resource
