"""Tracing with OpenTelemetry: the optional extra `tracing`. Nothing outside imports this unless it is switched on."""
