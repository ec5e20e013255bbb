"""Shared by every test: hypothesis is derandomised in CI, and never judged by the clock of a shared machine."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("base", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("base"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "base")
