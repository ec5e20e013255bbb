"""Implementations of the ports: engines, journal, stores, clock, metrics, logs, processes."""
