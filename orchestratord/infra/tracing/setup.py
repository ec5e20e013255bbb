"""A provider of tracers as the standard OTEL_* variables of the environment describe it.

The SDK reads most of them by itself: service name and attributes, sampler, limits, batching, endpoint, headers, and
OTEL_SDK_DISABLED. What is left is which exporters there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

EXPORTERS = "opentelemetry_traces_exporter"  # the entry points by which exporters are found
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class TracingError(Exception):
    """Tracing is asked for and cannot be had; the message says what to do."""


def provider_from(environ: Mapping[str, str], version: str) -> TracerProvider:
    """Raises TracingError for an exporter that is not installed."""
    about = Resource({SERVICE_NAME: "orchestratord", SERVICE_VERSION: version})
    provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        if (exporter := _exporter(name.strip(), environ)) is not None:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    if name in ("none", ""):
        return None
    if name == "console":
        return ConsoleSpanExporter()
    if name == "otlp":
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        name = PROTOCOLS.get(protocol or "http/protobuf", protocol or "")
    known = entry_points(group=EXPORTERS)
    if name not in known.names:
        there = ", ".join(sorted({"console", "none", *known.names}))
        raise TracingError(f"OTEL_TRACES_EXPORTER: there is no exporter {name!r}. Installed: {there}.")
    return known[name].load()()
