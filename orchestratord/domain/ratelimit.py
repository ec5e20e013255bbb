"""A token bucket per caller."""

from __future__ import annotations

from collections import OrderedDict
from math import ceil

from orchestratord.domain.errors import AdmissionReject

CALLERS = 1024  # buckets kept; the longest unused goes first, and a forgotten caller starts with a full one
ROUNDING = 1e-6  # of a submission: whoever has waited as long as it was told gets in


class RateLimit:
    """`per_s` submissions a second on average, `burst` at once. `per_s` 0 is no limit."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller -> (filling, seen at)

    def take(self, caller: str, now: float) -> None:
        """Count one submission. Raises AdmissionReject with the time until the next one fits."""
        if not self._per_s:
            return
        filling, seen = self._buckets.pop(caller, (self._burst, now))
        filling = min(self._burst, filling + (now - seen) * self._per_s)
        allowed = filling >= 1 - ROUNDING
        self._buckets[caller] = (max(0.0, filling - allowed), now)
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = max(1, ceil((1 - filling) / self._per_s * 1000))
            raise AdmissionReject(
                f"Too many submissions from one caller: at most {self._per_s:g} a second. Try again in {wait} ms.",
                retry_after_ms=wait,
                policy_label="rate-limit",
            )
