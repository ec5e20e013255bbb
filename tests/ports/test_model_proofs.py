"""Evidence about models: digests that are of the bytes, signatures that are by the key, bills that are bills."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestratord.infra.trust import bills, measure, signatures
from orchestratord.infra.trust.proofs import FileProofs, load_roots
from orchestratord.infra.trust.root import BadKey
from orchestratord.infra.trust.signatures import load
from orchestratord.ports import Measured, ModelUnavailable
from tests.ports import signed_samples as samples
from tests.ports.journal_samples import eventually, within

DIGEST = f"sha256:{hashlib.sha256(samples.MODEL).hexdigest()}"
ROOTS = [load("ec", samples.ECDSA), load("mini", samples.MINISIGN), load("rsa", samples.RSA)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(samples.MODEL)
    return path


def measured(path: Path, proofs: FileProofs | None = None, *, fresh: bool = False) -> Measured:
    return asyncio.run((proofs or FileProofs()).measure(str(path), fresh=fresh))


def refused(path: Path) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as error:
        measured(path)
    return error.value


# -- digests -------------------------------------------------------------------------------------------------
def test_a_file_is_measured(model: Path) -> None:
    assert measured(model) == Measured(DIGEST, ((DIGEST, len(samples.MODEL)),))


@pytest.mark.parametrize("size", [0, 1, measure.PIECE - 1, measure.PIECE, measure.PIECE + 1, 3 * measure.PIECE + 7])
def test_every_byte_counts(tmp_path: Path, size: int) -> None:
    """At the seams of the pieces too."""
    data = os.urandom(size)
    (tmp_path / "m").write_bytes(data)
    assert measured(tmp_path / "m").digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_folder_is_measured_as_sha256sum_would(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b").write_bytes(b"two")
    (folder / "a b").write_bytes(b"one")
    one, two = hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"two").hexdigest()
    listing = f"{one}  a b\n{two}  deep/b\n"
    found = measured(folder)
    assert found.digest == f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    assert found.files == ((f"sha256:{one}", 3), (f"sha256:{two}", 3))


def test_numbered_files_are_one_model(tmp_path: Path) -> None:
    """ORCH-3037: an engine loads them all, so the digest of the first alone says nothing."""
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"%d" % number)
    (tmp_path / "m-00003-of-00002.gguf").write_bytes(b"not of it")
    first = tmp_path / "m-00001-of-00002.gguf"
    hashes = [hashlib.sha256(b"%d" % number).hexdigest() for number in (1, 2)]
    listing = f"{hashes[0]}  m-00001-of-00002.gguf\n{hashes[1]}  m-00002-of-00002.gguf\n"
    assert measured(first).digest == f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"
    assert measured(first).files == tuple((f"sha256:{h}", 1) for h in hashes)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    assert refused(first).code == "NOT_FOUND"


def test_a_folder_with_a_link_is_refused(tmp_path: Path, model: Path) -> None:
    """It could lead to any file of the machine."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights").symlink_to(model)
    assert refused(folder).code == "UNTRUSTED_ARTIFACT"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "pipe").code == "UNTRUSTED_ARTIFACT"
    assert refused(tmp_path / "empty").code == "NOT_FOUND"
    assert refused(tmp_path / "nothing").code == "NOT_FOUND"


def test_a_file_that_has_not_changed_is_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody wants it read."""
    reads: list[int] = []
    whole = measure._read
    monkeypatch.setattr(measure, "_read", lambda *arguments: (reads.append(1), whole(*arguments))[1])
    proofs = FileProofs()
    assert [measured(model, proofs).digest for _ in range(3)] == [DIGEST] * 3
    assert len(reads) == 1
    measured(model, proofs, fresh=True)
    assert len(reads) == 2
    model.write_bytes(samples.MODEL[::-1])
    assert measured(model, proofs).digest != DIGEST


def test_a_change_that_hides_its_time_is_seen(model: Path) -> None:
    """Same size, same modification time: the inode's own time still tells."""
    proofs = FileProofs()
    before = model.stat()
    measured(model, proofs)
    model.write_bytes(samples.MODEL[::-1])
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert measured(model, proofs).digest != DIGEST


def test_a_file_that_is_written_to_while_it_is_read_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure._read

    def slow(*arguments: Any) -> bytes:
        found = whole(*arguments)
        with model.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(measure, "_read", slow)
    assert "changed while it was read" in str(refused(model))


def test_a_cancelled_measurement_stops_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over within a piece, and no thread goes on behind it."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 * measure.PIECE)
    reading, go_on, pieces = threading.Event(), threading.Event(), []
    whole = measure._read

    def slowly(readinto: Any, algo: Any, stopped: Any) -> bytes:
        def piece(view: memoryview) -> int:
            pieces.append(1)
            if len(pieces) == 2:
                reading.set()
                go_on.wait(5)
            return int(readinto(view))

        return whole(piece, algo, stopped)

    monkeypatch.setattr(measure, "_read", slowly)

    async def body() -> None:
        task = asyncio.ensure_future(FileProofs().measure(str(path)))
        await eventually(reading.is_set)
        task.cancel()
        asyncio.get_running_loop().call_soon(go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await within(task)

    asyncio.run(body())
    assert len(pieces) == 2


# -- signatures ----------------------------------------------------------------------------------------------
def check(path: Path, signature: bytes, among: list[str] | None = None, model: bytes | None = None) -> str | None:
    """The root that made a signature."""
    file, signed = path / "m", path / "m.sig"
    file.write_bytes(samples.MODEL if model is None else model)
    signed.write_bytes(signature)
    proofs = FileProofs(ROOTS)

    async def body() -> str | None:
        found = await proofs.measure(str(file))
        return (await proofs.signature(str(signed), str(file), found, among or ["ec", "rsa", "mini"])).root

    return asyncio.run(body())


@pytest.mark.parametrize("there", [True, False])
def test_a_model_that_is_exchanged_between_two_reads_is_not_signed(tmp_path: Path, there: bool) -> None:
    """What was measured and what is signed are the same bytes, or there is no signature."""
    file, signed = tmp_path / "m", tmp_path / "m.sig"
    file.write_bytes(samples.MODEL + b"and something else")
    signed.write_bytes(samples.MINISIGN_SIGNATURE)
    proofs = FileProofs(ROOTS)

    async def body() -> None:
        found = await proofs.measure(str(file))
        if there:
            file.write_bytes(samples.MODEL)
        else:
            file.unlink()
        with pytest.raises(ModelUnavailable) as refused:
            await proofs.signature(str(signed), str(file), found, ["mini"])
        assert refused.value.code == ("UNTRUSTED_ARTIFACT" if there else "NOT_FOUND")

    asyncio.run(body())


def test_a_bill_is_read_once(tmp_path: Path) -> None:
    """What is judged by its digest is what its list is taken from."""
    (tmp_path / "bill").write_bytes(b"{}")
    with pytest.raises(ModelUnavailable, match="another digest"):
        asyncio.run(FileProofs().listed(str(tmp_path / "bill"), f"sha256:{'0' * 64}"))


def bundle(signature: bytes) -> bytes:
    """As `cosign sign-blob --key --bundle` writes it."""
    material = {"publicKey": {"hint": "whatever"}}
    digest = {"algorithm": "SHA2_256", "digest": base64.b64encode(b"not this one").decode()}
    message = {"messageDigest": digest, "signature": signature.decode()}
    return json.dumps({"mediaType": "x", "verificationMaterial": material, "messageSignature": message}).encode()


GOOD = {
    "ecdsa": (samples.ECDSA_SIGNATURE, "ec"),
    "ecdsa bare": (base64.b64decode(samples.ECDSA_SIGNATURE), "ec"),
    "ecdsa in lines": (samples.ECDSA_SIGNATURE[:40] + b"\n" + samples.ECDSA_SIGNATURE[40:] + b"\n", "ec"),
    "ecdsa in a bundle": (bundle(samples.ECDSA_SIGNATURE), "ec"),
    "ecdsa in an old bundle": (json.dumps({"base64Signature": samples.ECDSA_SIGNATURE.decode()}).encode(), "ec"),
    "rsa": (samples.RSA_SIGNATURE, "rsa"),
    "rsa bare": (base64.b64decode(samples.RSA_SIGNATURE), "rsa"),
    "minisign": (samples.MINISIGN_SIGNATURE, "mini"),
}


@pytest.mark.parametrize("kind", GOOD)
def test_signatures_of_the_usual_tools_are_known(tmp_path: Path, kind: str) -> None:
    """ORCH-3080: by their key, for the bytes they were made for, and for no others."""
    signature, root = GOOD[kind]
    assert check(tmp_path, signature) == root
    assert check(tmp_path, signature, [name for name in ("ec", "rsa", "mini") if name != root]) is None
    assert check(tmp_path, signature, model=samples.MODEL + b"\n") is None


@pytest.mark.parametrize("kind", ["ecdsa bare", "rsa bare", "minisign"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_signature_with_one_wrong_bit_is_none(tmp_path_factory: pytest.TempPathFactory, kind: str, data: Any) -> None:
    """Wherever it is. Only minisign's first line, which says so itself, and what base64 ignores may be anything."""
    good, _ = GOOD[kind]
    first = good.index(b"\n") + 1 if kind == "minisign" else 0
    bit = data.draw(st.integers(first * 8, len(good) * 8 - 1))
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ModelUnavailable):
        if kind == "minisign" and signatures._minisign(bytes(bad)) == signatures._minisign(good):
            return
        assert check(tmp_path_factory.mktemp("bit"), bytes(bad)) is None


def test_a_signed_comment_cannot_be_changed(tmp_path: Path) -> None:
    changed = samples.MINISIGN_SIGNATURE.replace(b"made for a test", b"made for a fest")
    assert check(tmp_path, changed) is None


@pytest.mark.parametrize(
    "damaged",
    [
        samples.MINISIGN_LEGACY,
        b"untrusted comment: x",
        b"untrusted comment: x\nAAAA\ntrusted comment: y\nAAAA\n",
        b"{",
        b"{}",
        b'{"messageSignature": {}}',
        b'{"messageSignature": {"signature": 3}}',
        b'{"dsseEnvelope": {"signatures": []}}',
        b"{" * 100_000,
    ],
)
def test_what_is_no_signature_over_a_file_is_refused(tmp_path: Path, damaged: bytes) -> None:
    with pytest.raises(ModelUnavailable) as error:
        check(tmp_path, damaged)
    assert error.value.code == "UNTRUSTED_ARTIFACT"


def test_a_folder_is_signed_by_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """minisign's other hash is of the same list."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    listing = f"{hashlib.sha256(b'one').hexdigest()}  a\n".encode()
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    root = load("own", base64.b64encode(b"Ed" + bytes(8) + public))
    made = key.sign(hashlib.blake2b(listing).digest())
    blob, whole = base64.b64encode(b"ED" + bytes(8) + made), base64.b64encode(key.sign(made + b"c"))
    (tmp_path / "sig").write_bytes(b"\n".join([b"untrusted comment:", blob, b"trusted comment: c", whole]))
    proofs = FileProofs([root])

    async def body() -> str | None:
        found = await proofs.measure(str(folder))
        return (await proofs.signature(str(tmp_path / "sig"), str(folder), found, ["own"])).root

    assert asyncio.run(body()) == "own"


def test_keys_are_loaded_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(samples.ECDSA)
    (tmp_path / "b.pub").write_bytes(samples.MINISIGN)
    roots = load_roots({"b": str(tmp_path / "b.pub"), "a": str(tmp_path / "a.pem")})
    assert [(root.name, root.kind) for root in roots] == [("a", "ecdsa-sha256"), ("b", "minisign")]
    assert FileProofs(roots).roots == {"a", "b"}


def pem(key: Any) -> bytes:
    made: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return made


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "minisign"),
        (pem(rsa.generate_private_key(65537, 1024)), "too weak"),
    ],
    ids=["empty", "text", "no key", "no certificate", "ed25519 in PEM", "weak"],
)
def test_a_key_that_cannot_be_used_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    """With the name under which it stands in the configuration."""
    (tmp_path / "key").write_bytes(data)
    with pytest.raises(BadKey, match=why) as error:
        load_roots({"acme": str(tmp_path / "key")})
    assert "trust.roots.acme" in str(error.value)


def test_without_the_extra_a_key_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "MISSING", "cryptography is not installed: pip install 'orchestratord[trust]'")
    with pytest.raises(BadKey, match="orchestratord"):
        load("acme", samples.ECDSA)


# -- bills of materials --------------------------------------------------------------------------------------
A, B = "a" * 64, "b" * 64


def cyclonedx(*hashes: str, **fields: Any) -> dict[str, Any]:
    inner = [{"type": "file", "name": "w", "hashes": [{"alg": "SHA-256", "content": h}]} for h in hashes]
    component = {"type": "machine-learning-model", "name": "m", "components": inner}
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": [component], **fields}


def spdx(*hashes: str, **fields: Any) -> dict[str, Any]:
    files = [
        {"SPDXID": f"SPDXRef-{n}", "fileName": f"./{n}", "checksums": [{"algorithm": "SHA256", "checksumValue": h}]}
        for n, h in enumerate(hashes)
    ]
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "m",
        "documentNamespace": "https://models.example/m",
        "creationInfo": {"creators": ["Tool: hand"], "created": "2026-01-01T00:00:00Z"},
        "files": files,
        **fields,
    }


def listed(tmp_path: Path, document: Any) -> frozenset[str]:
    path = tmp_path / "bill.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return asyncio.run(FileProofs().listed(str(path), digest))


@pytest.mark.parametrize("make", [cyclonedx, spdx])
def test_a_bill_tells_the_digests_it_lists(tmp_path: Path, make: Any) -> None:
    """ORCH-3080: in both formats, of nested parts too."""
    assert listed(tmp_path, make(A, B.upper() if make is cyclonedx else B)) == {f"sha256:{A}", f"sha256:{B}"}
    assert listed(tmp_path, make()) == frozenset()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"GGUF",
        b"\xff\xfe",
        b"[" * 200_000,
        [],
        {},
        {"bomFormat": "CycloneDX"},
        cyclonedx(A, specVersion="99"),
        cyclonedx(A, components=[{"type": "nonsense", "name": "m"}]),
        cyclonedx(A, components=3),
        {"spdxVersion": "SPDX-2.3"},
        spdx(A, files=[{"fileName": 3}]),
        spdx(A, spdxVersion=[[[[]]]]),
    ],
    ids=lambda document: str(document)[:40],
)
def test_what_is_no_bill_is_refused(tmp_path: Path, document: Any) -> None:
    """Whatever a parser makes of it."""
    with pytest.raises(ModelUnavailable) as error:
        listed(tmp_path, document)
    assert error.value.code == "UNTRUSTED_ARTIFACT"


def test_a_bill_nested_too_deeply_is_refused() -> None:
    document: Any = "x"
    for _ in range(bills.MAX_DEPTH + 1):
        document = {"components": [document]}
    with pytest.raises(ModelUnavailable):
        bills.listed(json.dumps(document).encode())


def test_files_beside_a_model_are_small(tmp_path: Path) -> None:
    """H9: nobody's bill fills the memory."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(measure.SMALL + 1)
    with pytest.raises(ModelUnavailable, match="larger than"):
        asyncio.run(FileProofs().listed(str(path), ""))
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        asyncio.run(FileProofs().digest(str(tmp_path / "nothing")))
