"""Trust policies: two of them ask for all that one of them asks for, and nothing that was found out makes it less."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.domain.entry import CatalogEntry
from orchestratord.domain.trust import CONTRADICTIONS, STRICT, Findings, Reason, TrustPolicy

names = st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "hf:c"]), max_size=3).map(tuple))
policies = st.builds(
    TrustPolicy,
    st.sampled_from([None, "permissive", "strict"]),
    names,
    st.sampled_from([None, False, True]),
    st.sampled_from([None, False, True]),
    names,
)
reasons: list[Reason] = ["registry", "not_found", "not_allowed", "error", *sorted(CONTRADICTIONS)]
found = st.one_of(
    st.none(),
    st.builds(
        lambda fault, signed, bill: Findings(1, fault or "ok", "why", "sha256:x", signed, bill, fault),
        st.sampled_from([None, *reasons]),
        st.booleans(),
        st.booleans(),
    ),
)
entries = st.builds(
    lambda source, policy, findings: CatalogEntry("m", source, 1, trust_policy=policy, findings=findings),
    st.sampled_from(["file:a", "hf:c/d", "https://a/x", "https://z/x"]),
    st.one_of(st.none(), policies),
    found,
)


@given(policies, policies, entries)
def test_more_policies_never_trust_more(one: TrustPolicy, other: TrustPolicy, entry: CatalogEntry) -> None:
    """ORCH-3097: what either refuses both refuse, in either order."""
    both = one.tightened(other)
    assert not (entry.untrusted(one) and not entry.untrusted(both))
    assert not (entry.untrusted(other) and not entry.untrusted(both))
    assert bool(entry.untrusted(both)) == bool(entry.untrusted(other.tightened(one)))


@given(policies, entries)
def test_an_entry_cannot_loosen(policy: TrustPolicy, entry: CatalogEntry) -> None:
    """ORCH-3097: with a policy of its own it is trusted only if it would be without."""
    assert not (entry.untrusted(policy) is None and replace(entry, trust_policy=None).untrusted(policy))


@given(policies, entries)
def test_what_was_found_false_is_never_trusted(policy: TrustPolicy, entry: CatalogEntry) -> None:
    """ORCH-3037."""
    for fault in sorted(CONTRADICTIONS):
        false = replace(entry, findings=Findings(1, fault, "why", signed=True, bill=True, fault=fault))
        assert false.untrusted(policy)


@given(entries)
def test_strict_trust_takes_everything(entry: CatalogEntry) -> None:
    """ORCH-3080: a check that was passed, a signature and a bill; nothing less."""
    good = entry.findings
    proven = good is not None and good.fault is None and good.signed and good.bill
    if not entry.untrusted(STRICT):
        assert proven
    if proven and entry.trust_policy is None:
        assert entry.untrusted(STRICT) is None


@pytest.mark.parametrize(
    ("policy", "registry", "allowed"),
    [
        (TrustPolicy(), "a", True),
        (TrustPolicy(allowed_registries=()), "a", False),
        (TrustPolicy(allowed_registries=("a",)), "a", True),
        (TrustPolicy(allowed_registries=("a",)), "b", False),
        (TrustPolicy(allowed_registries=("a",)), None, True),
        (TrustPolicy(allowed_registries=("a", "b")).tightened(TrustPolicy(allowed_registries=("b",))), "a", False),
    ],
)
def test_registries(policy: TrustPolicy, registry: str | None, *, allowed: bool) -> None:
    """Files of this machine are no registry's."""
    assert policy.allows(registry) is allowed


def test_a_policy_that_says_nothing_asks_for_nothing() -> None:
    silent = TrustPolicy()
    assert (silent.strict, silent.needs_signature, silent.needs_sbom) == (False, False, False)
    assert STRICT.tightened(None) is STRICT
    assert silent.tightened(STRICT).strict
