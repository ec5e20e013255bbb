"""What the scenarios of the catalog do not see: checks during outages and stops, and what is loaded after all."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestratord.domain.catalog import Catalog
from orchestratord.domain.entry import CatalogEntry, Sbom, SignatureRef
from orchestratord.domain.operation import OVER, Operation, PoolChanged
from orchestratord.domain.pool import Pool, PoolSpec
from orchestratord.domain.trust import Findings, TrustPolicy
from orchestratord.infra.fetch.files import LocalFiles
from orchestratord.infra.journal.memory import MemoryJournal, MemoryStore
from orchestratord.infra.trust.proofs import FileProofs
from orchestratord.infra.trust.signatures import load
from orchestratord.ports import JournalUnavailable, Measured, ModelUnavailable, ProcessSpec, ReplicaProcess
from orchestratord.services.trust import Trust
from orchestratord.services.verification import Verification
from orchestratord.testing.live import LiveApp, mock_pool, mock_settings
from orchestratord.testing.session import VerifyingSession
from tests.engines.support import CLOCK
from tests.ports import signed_samples as samples
from tests.services.support import BreakingJournal, health, records, wait_for
from tests.services.test_reload import as_process

MODEL = b"GGUF and some weights"
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
WRONG = "sha256:" + "0" * 64
PATH = "/v1/catalog/models"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "m.gguf").write_bytes(MODEL)
    return tmp_path


@contextmanager
def catalog(root: Path, **parts: Any) -> Iterator[tuple[LiveApp, VerifyingSession]]:
    """A daemon with one entry, `m`, of a file that is there."""
    with LiveApp(mock_settings(models={"roots": [str(root)]}), **parts) as app, app.session() as session:
        assert session.post(PATH, json={"id": "m", "source_url": "file:m.gguf"}).status_code == 201
        yield app, session


class Held:
    """Reading a model waits until it is let go; how often it was read, and how often that was given up."""

    def __init__(self, app: LiveApp) -> None:
        self.read = self.given_up = 0
        self._whole = app.daemon.proofs.measure
        self._gate = asyncio.Event()
        self._app = app
        app.daemon.proofs.measure = self.measure  # type: ignore[method-assign]

    async def measure(self, path: str, *, fresh: bool = False) -> Any:
        self.read += 1
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return await self._whole(path, fresh=fresh)

    def reached(self) -> None:
        wait_for(lambda: self.read, "the model is being read")

    def let_go(self) -> None:
        self._app.call(self._gate.set)


def status(session: VerifyingSession, model_id: str = "m") -> str:
    return str(session.get(f"{PATH}/{model_id}").json()["verification"]["status"])


def verify(session: VerifyingSession, model_id: str = "m") -> int:
    return session.post(f"{PATH}/{model_id}/verify").status_code


# -- checks --------------------------------------------------------------------------------------------------
def test_what_a_check_found_is_written_after_an_outage(root: Path) -> None:
    """ORCH-3061: it is not lost, and until it is written the check counts as running."""
    journal = BreakingJournal()
    with catalog(root, journal=journal) as (app, session):
        held = Held(app)
        assert verify(session) == 202
        app.call(lambda: setattr(journal, "broken", "no space left on device"))
        held.let_go()
        app.advance(3)
        assert status(session) == "running"
        app.call(journal.mend)
        wait_for(lambda: (app.advance(1), status(session) == "passed")[1], "the result is written")
        assert [r["result"] for r in records(app, "model_verified")] == ["passed"]


def test_a_removal_that_fails_does_not_lose_the_check(root: Path) -> None:
    """The entry was gone for a moment, just when the check came to its end."""
    journal = BreakingJournal()
    with catalog(root, journal=journal) as (app, session):
        held = Held(app)
        verify(session)
        app.call(lambda: setattr(journal, "breaking", True))
        assert session.delete(f"{PATH}/m").status_code == 503
        held.let_go()
        app.call(journal.mend)
        wait_for(lambda: (app.advance(1), status(session) == "passed")[1], "the check is over")


def test_a_check_that_ends_while_its_model_is_being_removed_waits_for_that(root: Path) -> None:
    """Whether there is something to write is known only then."""
    with catalog(root) as (app, session):
        held, books = Held(app), app.daemon.core.catalog
        verify(session)
        held.reached()
        removal = app.call(lambda: asyncio.get_running_loop().create_future())
        record = books._record

        def remove() -> None:
            books._record = lambda _: removal
            books.remove("m")
            books._record = record

        app.call(remove)
        held.let_go()
        wait_for(
            lambda: app.call(lambda: app.daemon.catalog._verification._turn.locked()) is False, "the model was read"
        )
        app.settle()
        app.call(lambda: removal.set_exception(JournalUnavailable("no space left on device")))
        wait_for(lambda: status(session) == "passed", "the result is written")


def test_a_stop_gives_a_check_up(root: Path) -> None:
    with catalog(root) as (app, session):
        held = Held(app)
        verify(session)
        held.reached()
    assert held.given_up == 1


def test_removing_a_model_gives_its_check_up(root: Path) -> None:
    """And its id is free for another at once."""
    with catalog(root) as (app, session):
        held = Held(app)
        verify(session)
        held.reached()
        assert session.delete(f"{PATH}/m").status_code == 204
        wait_for(lambda: held.given_up == 1, "the check is given up")
        assert session.post(PATH, json={"id": "m", "source_url": "file:m.gguf"}).status_code == 201
        assert status(session) == "unverified"


def test_one_model_is_read_at_a_time(root: Path) -> None:
    (root / "n.gguf").write_bytes(MODEL)
    with catalog(root) as (app, session):
        session.post(PATH, json={"id": "n", "source_url": "file:n.gguf"})
        held = Held(app)
        assert [verify(session, name) for name in ("m", "n", "m")] == [202, 202, 202]
        held.reached()
        assert held.read == 1
        held.let_go()
        wait_for(lambda: status(session) == status(session, "n") == "passed", "both are over")
        assert held.read == 2


def test_a_bug_in_a_check_ends_it(root: Path) -> None:
    """Nobody waits for ever, and nothing of the inside is shown."""
    with catalog(root) as (app, session):

        async def bug(path: str, *, fresh: bool = False) -> Any:
            raise ZeroDivisionError("a secret of the inside")

        app.daemon.proofs.measure = bug  # type: ignore[method-assign]
        verify(session)
        wait_for(lambda: status(session) == "failed", "it is over")
        assert session.get(f"{PATH}/m").json()["verification"]["reason"] == "error: a bug ended the check"
        assert len(list(records(app, "check_broke"))) == 1


def test_a_retirement_drains_as_soon_as_that_can_be_written(root: Path) -> None:
    """ORCH-3062: the journal takes the retirement, and fails before the drain."""
    journal = BreakingJournal()
    with LiveApp(mock_settings(), journal=journal) as app, app.session() as session:
        session.post(PATH, json={"id": "m", "source_url": "file:home.gguf"})
        begun = app.daemon.operations.drain

        async def break_first(*arguments: Any) -> Any:
            app.daemon.operations.drain = begun  # type: ignore[method-assign]
            journal.broken = "no space left on device"
            return await begun(*arguments)

        app.daemon.operations.drain = break_first  # type: ignore[method-assign]
        assert session.post(f"{PATH}/m/state", json={"state": "Retired"}).status_code == 202
        app.settle()
        assert health(session)["draining"] is False
        app.call(journal.mend)
        app.advance(2)
        assert health(session)["draining"] is True


@pytest.mark.parametrize("resumed", [False, True])
def test_a_drain_that_a_crash_has_kept_from_beginning_begins_at_the_start(*, resumed: bool) -> None:
    """ORCH-3062: unless an operator has resumed the pool since."""
    retired = CatalogEntry("m", "file:home.gguf", 1, state="Retired", state_ms=5)
    pool_store = MemoryStore(catalog={"m": retired})
    if resumed:
        resume = Operation(
            "2d1c0b9a-8f7e-4d6c-9b5a-4f3e2d1c0b9a", "home", "resume", "succeeded", "file:home.gguf", 1, 6, ended_ms=7
        )
        pool_store.pools["home"] = PoolChanged("home", "file:home.gguf", False, 1, None, resume)
    journal = MemoryJournal(lambda source: pytest.fail("nothing is archived"), store=pool_store)
    app = LiveApp(mock_settings(), journal=journal).start(ready=False)
    try:
        with app.session() as session:
            app.advance(1)
            assert health(session)["draining"] is not resumed
    finally:
        app.stop()


# -- the order and the words of a check ----------------------------------------------------------------------
def findings(root: Path, policy: TrustPolicy | None = None, *, keys: bool = True, **fields: Any) -> Findings:
    roots = [load("acme", samples.ECDSA), load("other", samples.RSA)] if keys else []
    check = Verification(LocalFiles([str(root)]), FileProofs(roots), CLOCK, policy or TrustPolicy())
    entry = CatalogEntry("m", fields.pop("source_url", "file:m.gguf"), 1, **fields)
    return asyncio.run(check.check(entry))[0]


def beside(root: Path, name: str, data: bytes) -> tuple[str, str]:
    """(reference, digest) of a file beside the model."""
    (root / name).write_bytes(data)
    return f"file:{name}", f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_every_check_reads_the_model(root: Path) -> None:
    """ORCH-3061: what rotted on the disk has the same size and times."""
    reads: list[bool] = []

    class Watched(FileProofs):
        async def measure(self, path: str, *, fresh: bool = False) -> Measured:
            reads.append(fresh)
            return await super().measure(path, fresh=fresh)

    check = Verification(LocalFiles([str(root)]), Watched(), CLOCK, TrustPolicy())
    asyncio.run(check.check(CatalogEntry("m", "file:m.gguf", 1)))
    assert reads == [True]


def test_a_signature_waits_for_its_turn_to_read_the_model_too(root: Path) -> None:
    """ORCH-3061: reading one takes a disk and a core; signatures over the bytes read it once more."""
    reading: list[int] = [0, 0]

    class Counted(FileProofs):
        async def measure(self, path: str, *, fresh: bool = False) -> Measured:
            return await self._one(super().measure(path, fresh=fresh))

        async def signature(self, *arguments: Any) -> Any:
            return await self._one(super().signature(*arguments))

        async def _one(self, work: Any) -> Any:
            reading[0] += 1
            reading[1] = max(reading)
            try:
                return await work
            finally:
                reading[0] -= 1

    async def many() -> None:
        refs = (SignatureRef(beside(root, "m.sig", samples.ECDSA_SIGNATURE)[0]),)
        check = Verification(
            LocalFiles([str(root)]), Counted([load("acme", samples.ECDSA)]), CLOCK, TrustPolicy("permissive")
        )
        entries = [CatalogEntry(str(n), "file:m.gguf", 1, signature_refs=refs) for n in range(5)]
        found = await asyncio.gather(*(check.check(entry) for entry in entries))
        assert all(findings.signed for findings, _ in found)

    asyncio.run(many())
    assert reading == [0, 1]


@pytest.mark.parametrize(
    ("policy", "signer", "fault"),
    [
        (None, None, None),
        (None, "acme", None),
        (None, "other", "signature"),
        (None, "nobody", "signature"),
        (TrustPolicy(ca_roots=("acme", "other")), None, None),
        (TrustPolicy(ca_roots=("other",)), None, "signature"),
    ],
)
def test_a_signature_is_by_whom_it_should_be(
    root: Path, policy: TrustPolicy | None, signer: str | None, fault: str | None
) -> None:
    """ORCH-3080: by the signer that was named, and only by a root the entry trusts."""
    uri, digest = beside(root, "m.sig", samples.ECDSA_SIGNATURE)
    found = findings(root, trust_policy=policy, signature_refs=(SignatureRef(uri, digest, signer),))
    assert (found.fault, found.signed) == (fault, fault is None)


def test_one_good_signature_does_not_make_up_for_a_bad_one(root: Path) -> None:
    good, _ = beside(root, "m.sig", samples.ECDSA_SIGNATURE)
    bad, _ = beside(root, "bad.sig", samples.ECDSA_SIGNATURE[::-1])
    found = findings(root, signature_refs=(SignatureRef(good), SignatureRef(bad)))
    assert (found.fault, found.signed) == ("signature", False)


def test_a_signature_file_with_another_digest_is_not_even_read(root: Path) -> None:
    uri, _ = beside(root, "m.sig", samples.ECDSA_SIGNATURE)
    found = findings(root, signature_refs=(SignatureRef(uri, WRONG),))
    assert (found.fault, "another digest" in found.message) == ("signature", True)


def test_a_signature_nobody_here_can_judge_counts_as_missing(root: Path) -> None:
    """A warning, or a fault where one is needed."""
    refs = (SignatureRef(beside(root, "m.sig", samples.ECDSA_SIGNATURE)[0]),)
    assert findings(root, keys=False, signature_refs=refs).reason == "signature_missing"
    assert findings(root, TrustPolicy("strict"), keys=False, signature_refs=refs).fault == "signature_missing"
    assert findings(root, TrustPolicy("strict"), signature_refs=(SignatureRef("file:no.sig"),)).fault == (
        "signature_missing"
    )


def test_a_bill_without_digests_says_nothing_against_a_model(root: Path) -> None:
    """ORCH-3080: one that lists other digests does, and so does one that is not the bill that was promised."""
    empty = json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1}).encode()
    uri, digest = beside(root, "m.json", empty)
    assert findings(root, sbom=Sbom(uri, digest)).bill is True
    assert findings(root, sbom=Sbom(uri, WRONG)).fault == "sbom"
    uri, digest = beside(root, "page.json", b"<!doctype html>")
    assert findings(root, sbom=Sbom(uri, digest)).fault == "sbom"


def test_a_registry_that_is_not_allowed_is_not_even_asked(root: Path) -> None:
    found = findings(root, TrustPolicy(allowed_registries=("a.example",)), source_url="https://b.example/m")
    assert (found.fault, found.message) == ("registry", "b.example is none of the allowed registries")


def test_a_source_that_may_not_be_loaded_is_told_from_one_that_is_not_there(root: Path) -> None:
    assert findings(root, source_url="https://b.example/m").fault == "not_allowed"
    assert findings(root, source_url="file:/etc/hostname").fault == "not_allowed"
    assert findings(root, source_url="file:nothing").fault == "not_found"


def test_the_digest_is_known_also_of_a_model_that_failed(root: Path) -> None:
    """ORCH-3037: so that an operator sees what is really there."""
    found = findings(root, digest=WRONG)
    assert (found.fault, found.digest, DIGEST in found.message) == ("digest", DIGEST, True)


def test_a_warning_names_all_that_is_missing(root: Path) -> None:
    found = findings(root, digest=DIGEST)
    assert (found.reason, found.fault) == ("signature_missing", None)
    assert found.message == "there is no signature; there is no bill of materials"


# -- what is loaded ------------------------------------------------------------------------------------------
def vet(
    root: Path,
    *entries: CatalogEntry,
    policy: TrustPolicy | None = None,
    pinned: str | None = None,
) -> str | None:
    books = Catalog(lambda fact: pytest.fail("nothing is written"), policy or TrustPolicy())
    books.restore(entries)
    trust = Trust(books, FileProofs(), {"home": pinned} if pinned else {})
    pool = Pool(PoolSpec("home", "llamacpp", "llamacpp", "file:m.gguf"))
    return asyncio.run(trust.vet(pool, "file:./m.gguf", str(root / "m.gguf")))


def checked(digest: str) -> Findings:
    return Findings(1, "ok", "", digest, signed=True, bill=True)


def test_a_digest_that_was_given_is_compared(root: Path) -> None:
    """ORCH-3037: of the entry and of the configuration; without one the file is not read."""
    assert vet(root, CatalogEntry("m", "file:m.gguf", 1, digest=DIGEST)) == DIGEST
    assert vet(root, pinned=DIGEST) == DIGEST
    assert vet(root) is None
    assert vet(root, CatalogEntry("other", "file:other.gguf", 1, digest=WRONG)) is None


@pytest.mark.parametrize(
    ("entry", "policy", "pinned", "who"),
    [
        (CatalogEntry("m", "file:m.gguf", 1, digest=WRONG), None, None, "catalog model 'm'"),
        (CatalogEntry("m", "file:m.gguf", 1, digest=DIGEST), None, WRONG, "the configuration of pool home"),
        (CatalogEntry("m", "file:m.gguf", 1, findings=checked(WRONG)), TrustPolicy("strict"), None, "catalog model"),
    ],
    ids=["entry", "configuration", "strict: what was checked"],
)
def test_another_digest_keeps_a_model_out(
    root: Path, entry: CatalogEntry, policy: TrustPolicy | None, pinned: str | None, who: str
) -> None:
    """ORCH-3037: and the message says who wanted which."""
    with pytest.raises(ModelUnavailable) as error:
        vet(root, entry, policy=policy, pinned=pinned)
    assert error.value.code == "UNTRUSTED_ARTIFACT"
    assert f"{who}" in str(error.value)
    assert WRONG in str(error.value)
    assert DIGEST in str(error.value)


class Host:
    """Starts nothing, and knows what it was asked to start."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def start(self, spec: ProcessSpec) -> ReplicaProcess:
        self.asked.append(spec.model_path)
        raise OSError("not today")


def asked(root: Path, digest: str) -> tuple[list[str], str]:
    """Which models a daemon with this digest in its configuration starts engines with, and its pool's last error."""
    host, pool = Host(), mock_pool(pins={"model_digest": digest})
    pool["replicas"] = [{"id": "r0", "process": {"model_path": str(root / "m.gguf")}}]
    app = LiveApp(mock_settings(pools=[pool]))
    app.daemon.replicas._host = host
    app.start(ready=False)
    try:
        with app.session() as session:
            fault = wait_for(lambda: health(session).get("last_error"), "it was tried")
            app.advance(60)
            return host.asked, fault["message"]
    finally:
        app.stop()


def test_an_engine_is_not_started_with_the_wrong_file(root: Path) -> None:
    """ORCH-3037: and health says why."""
    started, why = asked(root, WRONG)
    assert started == []
    assert WRONG in why
    assert "the configuration of pool home" in why


def test_an_engine_is_started_with_the_right_file(root: Path) -> None:
    started, why = asked(root, DIGEST)
    assert set(started) == {str(root / "m.gguf")}
    assert why == "not today"


def test_a_root_that_cannot_be_used_keeps_the_daemon_from_starting(root: Path) -> None:
    """With the place in the configuration."""
    for path in (root / "m.gguf", root / "nothing.pem"):
        with pytest.raises(Exception, match=r"trust\.roots"):
            LiveApp(mock_settings(trust={"roots": {"acme": str(path)}}))


def test_a_reload_to_another_digest_fails_before_anything_is_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ORCH-3037: also of a model that nobody has had checked."""
    with LiveApp(mock_settings(models={"roots": [str(root)]})) as app, app.session() as session:
        session.post(PATH, json={"id": "m", "source_url": "file:m.gguf", "digest": WRONG})
        pool = app.daemon.core.pools["home"]
        spec = as_process(app.daemon.replicas.specs(pool)[0])
        monkeypatch.setattr(app.daemon.replicas, "specs", lambda _: [spec])
        assert session.post("/v1/pools/home/reload", json={"new_model_ref": "file:m.gguf"}).status_code == 202
        found = wait_for(lambda: over(session), "the reload is over")
        assert (found["operation"]["state"], found["operation"]["error"]["code"]) == ("failed", "UNTRUSTED_ARTIFACT")
        assert (found["ready"], found["model_ref"]) == (True, "file:home.gguf")


def over(session: VerifyingSession) -> dict[str, Any] | None:
    found = health(session)
    return found if found["operation"]["state"] in OVER else None
