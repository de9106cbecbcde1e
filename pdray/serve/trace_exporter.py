"""Where spans go: to the collector that OpenTelemetry's own variables name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdray.config import exports_traces
from pdray.core.errors import ConfigError

if TYPE_CHECKING:
    from pdray.serve.tracing import Tracing


def open_tracing() -> Tracing | None:
    """None where the environment names no exporter. Raises ConfigError."""
    if not exports_traces():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from pdray.serve.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the environment asks for spans (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT), "
            f"and {error.name} is not installed; accepted: pip install 'pdray[otel]', or "
            "OTEL_TRACES_EXPORTER=none"
        ) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))
