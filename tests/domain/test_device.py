"""Which devices a mask means."""

from __future__ import annotations

import pytest

from orchestratord.domain.device import Device, behind

DEVICES = [Device(n, f"GPU-{n}a7c", 0.5, 1, 2) for n in range(11)]


@pytest.mark.parametrize(
    ("mask", "indexes"),
    [
        (None, []),
        ("", []),
        ("0", [0]),
        ("1, 10", [1, 10]),
        ("GPU-3a", [3]),
        ("gpu0", []),
        ("-1", []),
        ("99", []),
        ("²", []),
        ("GPU-", list(range(11))),
    ],
)
def test_masks(mask: str | None, indexes: list[int]) -> None:
    """OD-19: as CUDA_VISIBLE_DEVICES reads them; a mask of other words names nothing we could measure."""
    assert [device.index for device in behind(mask, DEVICES)] == indexes
