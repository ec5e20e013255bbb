"""Placement: feasibility, the table of refusals, the order of tie-breakers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.device import Device
from orchestratord.domain.errors import InvalidParams, PoolUnavailable, PoolUnready, Refusal
from orchestratord.domain.placement import Decision, PoolSnapshot, pick_replica, place, static_obstacle
from orchestratord.domain.pool import Lease, Replica
from orchestratord.domain.request import PlacementHints, TaskRequest
from tests.domain.world import World


def pool(pool_id: str, **fields: Any) -> PoolSnapshot:
    base = PoolSnapshot(
        id=pool_id,
        engine="llamacpp",
        serves=True,
        ready=True,
        probe_in_ms=None,
        loading=False,
        draining=False,
        ctx=4096,
        workloads=frozenset({"completion"}),
        device_masks=frozenset(),
        exact=False,
        predicted_end_ms=None,
        holds_session=False,
        load=0.0,
        vram_free=0,
        tokens_per_s=0.0,
    )
    return replace(base, **fields)


def job(**fields: Any) -> TaskRequest:
    hints = {k: fields.pop(k) for k in list(fields) if k in PlacementHints.__slots__}
    return World().request(placement=PlacementHints(**hints), **fields)


@pytest.mark.parametrize(
    ("request_fields", "pools", "error", "rule", "retriable"),
    [
        ({}, [pool("a", serves=False)], PoolUnready, None, False),
        ({}, [pool("a", ready=False, loading=True)], PoolUnready, None, True),
        ({}, [pool("a", draining=True)], PoolUnready, None, True),
        ({}, [pool("a", ready=False), pool("b", ready=False)], PoolUnavailable, None, True),
        ({"mode": "pin", "pin_pool_id": "x"}, [pool("a")], InvalidParams, "pin_unknown_pool", False),
        ({"mode": "pin", "pin_pool_id": "a"}, [pool("a", serves=False)], InvalidParams, "pin_infeasible", False),
        ({"mode": "pin", "pin_pool_id": "a"}, [pool("a", ready=False), pool("b")], PoolUnready, None, True),
        ({"avoid_pools": ("a",)}, [pool("a")], InvalidParams, "avoid_leaves_none", False),
        (
            {"mode": "prefer", "prefer_pools": ("a",), "allow_fallback": False},
            [pool("a", ready=False), pool("b")],
            PoolUnready,
            None,
            True,
        ),
        (
            {"mode": "prefer", "prefer_pools": ("a",), "allow_fallback": False},
            [pool("a", ready=False), pool("b", ready=False)],
            PoolUnready,
            None,
            True,
        ),
        *(
            ({"mode": "prefer", "prefer_pools": ("a",), "allow_fallback": False}, pools, PoolUnready, None, False)
            for pools in (
                [pool("b")],
                [pool("a", serves=False), pool("b")],
                [pool("a", ctx=64), pool("b")],
                [pool("a", serves=False), pool("b", ready=False, loading=True)],
            )
        ),
        ({"ctx": 8192}, [pool("a")], InvalidParams, "ctx_exceeds_model", False),
        ({"workload": "embedding"}, [pool("a")], InvalidParams, "unsupported_workload", False),
        ({"determinism": "strict"}, [pool("a")], InvalidParams, "unsupported_determinism", False),
        ({"require_device_mask": "0"}, [pool("a")], InvalidParams, "pin_infeasible", False),
    ],
)
def test_every_row_of_the_refusal_table(
    request_fields: dict[str, Any], pools: list[PoolSnapshot], error: type[Refusal], rule: str | None, retriable: bool
) -> None:
    """ORCH-39xx."""
    with pytest.raises(error) as refused:
        place(job(**request_fields), pools)
    assert refused.value.details.get("rule") == rule
    assert refused.value.is_retriable is retriable


def test_an_unserved_model_names_what_there_is() -> None:
    with pytest.raises(PoolUnready) as refused:
        place(job(), [pool(f"p{i:02}", serves=False) for i in range(30)])
    assert refused.value.details["available"] == [f"p{i:02}" for i in range(20)]


@pytest.mark.parametrize(
    ("fields", "breaker"),
    [
        ({"predicted_end_ms": 10.0}, "predicted_end"),
        ({"resident": True}, "resident"),
        ({"holds_session": True}, "affinity"),
        ({"load": -1.0}, "least_loaded"),
        ({"vram_free": 5}, "free_vram"),
        ({"tokens_per_s": 9.0}, "tokens_per_s"),
    ],
)
def test_each_tie_breaker_decides_when_all_before_it_tie(fields: dict[str, Any], breaker: str) -> None:
    """ORCH-3902: the order between pools; the log names what was needed."""
    base: dict[str, Any] = {"predicted_end": {"predicted_end_ms": 20.0}, "resident": {"resident": False}}.get(
        breaker, {}
    )
    decision = place(job(), [pool("a", **base), pool("b", **{**base, **fields})])
    assert decision.pool_id == "b"
    assert decision.tie_breakers == (breaker,)


def test_a_preference_without_a_way_out_waits_for_its_own_pools_only() -> None:
    """OC-CORE-1016: when to come back is what the preferred pool takes yet, whatever the others do."""
    pools = [pool("a", ready=False, loading=True, opens_ms=9000), pool("b", draining=True, opens_ms=5), pool("c")]
    for given_pools in (pools, pools[:2]):
        with pytest.raises(PoolUnready) as refused:
            place(job(mode="prefer", prefer_pools=("a",), allow_fallback=False), given_pools)
        assert refused.value.retry_after_ms == 9000


def test_prefer_falls_back_and_says_so_pin_never_does() -> None:
    pools = [pool("a", ready=False, loading=True), pool("b")]
    decision = place(job(mode="prefer", prefer_pools=("a",)), pools)
    assert decision.pool_id == "b"
    assert decision.fallback_used
    assert not decision.pinned


snapshots = st.builds(
    pool,
    st.sampled_from("abcdef"),
    serves=st.booleans(),
    ready=st.booleans(),
    probe_in_ms=st.none() | st.integers(1, 60_000),
    loading=st.booleans(),
    draining=st.booleans(),
    ctx=st.sampled_from([None, 64, 4096]),
    predicted_end_ms=st.none() | st.floats(0, 100),
    holds_session=st.booleans(),
    resident=st.booleans(),
    device_masks=st.sampled_from([frozenset(), frozenset({"0"}), frozenset({"0", "1"}), frozenset({"0,1"})]),
    load=st.floats(0, 3),
    vram_free=st.integers(0, 3),
)
jobs = st.builds(
    job,
    mode=st.sampled_from(["pin", "prefer", "auto"]),
    pin_pool_id=st.sampled_from("abcdefg"),
    prefer_pools=st.lists(st.sampled_from("abcdef"), max_size=2).map(tuple),
    avoid_pools=st.lists(st.sampled_from("abcdef"), max_size=3).map(tuple),
    allow_fallback=st.booleans(),
    require_device_mask=st.none() | st.sampled_from(["0", "1"]),
)


@given(jobs, st.lists(snapshots, max_size=6, unique_by=lambda p: p.id), st.randoms())
def test_placement_is_deterministic_and_keeps_every_promise(
    request: TaskRequest, pools: list[PoolSnapshot], rng: Any
) -> None:
    """OC-CORE-1010/1011: the order of the snapshots has no part in it, and every override is kept."""

    def outcome(given_pools: list[PoolSnapshot]) -> Any:
        try:
            return place(request, given_pools)
        except Refusal as refusal:
            return type(refusal), refusal.message, refusal.details, refusal.retry_after_ms

    found = outcome(pools)
    assert outcome(rng.sample(pools, len(pools))) == found
    hints = request.placement
    able = {p.id for p in pools if p.serves and static_obstacle(request, p) is None and p.ready and not p.draining}
    allowed = able & {hints.pin_pool_id} if hints.mode == "pin" else able - set(hints.avoid_pools)
    preferred = allowed & set(hints.prefer_pools) if hints.mode == "prefer" else set()
    if hints.mode == "prefer" and hints.prefer_pools and not (preferred or hints.allow_fallback):
        allowed = set()
    if not allowed:
        assert not isinstance(found, Decision), "nothing is allowed"
        return
    assert isinstance(found, Decision), "nothing that can be served is refused"
    assert found.pool_id in (preferred or allowed)
    assert found.pinned == (hints.mode == "pin")
    assert found.fallback_used == (hints.mode == "prefer" and bool(hints.prefer_pools) and not preferred)
    mask = hints.require_device_mask
    assert mask is None or mask in next(p for p in pools if p.id == found.pool_id).device_masks
    told = {line.partition(":")[0] for line in found.filters}
    assert {p.id for p in pools if p.serves} - allowed - {found.pool_id} <= told or found.pinned, "each is told why"


def test_the_replica_of_a_pool_is_chosen_by_prefix_memory_leases_and_id() -> None:
    """OC-CORE-1017: affinity, then most free VRAM, then fewest leases, then id; only what fits and has a free slot."""

    def replica(name: str, **fields: Any) -> Replica:
        fields.setdefault("workloads", frozenset({"completion"}))
        return Replica(name, state="ready", slots=2, ctx=4096, **fields)

    def pick(*replicas: Replica, warm: Replica | None = None, **fields: Any) -> str | None:
        chosen = pick_replica(replicas, job(**{"ctx": 100, **fields}), warm=warm)
        return chosen.id if chosen else None

    a, b, c = replica("a"), replica("b"), replica("c", devices=(Device(0, "GPU-0", None, 0, 8),))
    assert pick(a, b, c, warm=b) == "b"
    assert pick(a, b, c) == "c"
    b.leases[1] = Lease(1, None, None, b, 0, 0)  # type: ignore[arg-type]
    assert pick(b, a) == "a"
    assert pick(replica("y"), replica("x")) == "x"
    assert pick(a, ctx=8192) is None
    assert pick(a, workload="embedding") is None
    assert pick(a, replica("z", workloads=frozenset({"embedding"})), workload="embedding") == "z"
    a.leases[1] = a.leases[2] = b.leases[1]
    assert pick(a) is None
