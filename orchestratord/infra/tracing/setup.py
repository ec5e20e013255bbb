"""A provider of tracers as the standard OTEL_* variables of the environment describe it.

The SDK reads most of them by itself: service name and attributes, sampler, limits, batching, endpoint, headers, and
OTEL_SDK_DISABLED. What is left is which exporters there are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    """Raises TracingError for an exporter that is not installed, and for variables that mean nothing."""
    about = Resource({SERVICE_NAME: "orchestratord", SERVICE_VERSION: version})
    with _complaints() as said:
        provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
            if (exporter := _exporter(name.strip(), environ)) is not None:
                provider.add_span_processor(BatchSpanProcessor(exporter))
    if said:
        provider.shutdown()
        raise TracingError(f"tracing: a variable OTEL_* is wrong: {said[0]}")
    return provider


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the SDK raises or says while it reads its variables, without the values: a header may be a key.

    Left alone it would say so past our log, quote the value, and go on with a default of its own.
    """
    said: list[str] = []
    logger, handler = logging.getLogger("opentelemetry"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(str(record.msg))  # type: ignore[method-assign]
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    except TracingError:
        raise
    except Exception as error:  # each exporter has its own, and a third-party one any
        raise TracingError(f"tracing: a variable OTEL_* is wrong: {error}") from error
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


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
