"""s3: references against a store that wants signed requests. The signature itself is obstore's; moto judges none, so
this stand-in computes it anew with the standard library."""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest

from tests.fetch.site import MODEL, Asked, Reply, Site, digest, serving
from tests.fetch.support import Lab

KEYS = {"KEY_ID": "AKIDEXAMPLE", "KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
KEY = "deep/q4+v=2.gguf"


class Bucket:
    """One object, for whoever signs (AWS Signature Version 4, in the query), or for all if it is public."""

    def __init__(self, site: Site, *, public: bool = False) -> None:
        self.public = public
        self._site = site
        site.answer = self.answer  # type: ignore[method-assign]

    def answer(self, asked: Asked) -> Reply:
        path, _, query = asked.target.partition("?")
        if not self.public and not self._signed(path, query, asked.headers["host"]):
            return Reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        if path != "/models/" + quote(KEY, safe="/-._~"):
            return Reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return self._site.file(asked, MODEL)

    @staticmethod
    def _signed(path: str, query: str, host: str) -> bool:
        given = dict(parse_qsl(query, keep_blank_values=True))
        signature = given.pop("X-Amz-Signature", "")
        scope = given.get("X-Amz-Credential", "").partition("/")[2]
        canonical = "&".join(f"{quote(k, safe='-._~')}={quote(v, safe='-._~')}" for k, v in sorted(given.items()))
        request = f"GET\n{path}\n{canonical}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
        hashed = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{given.get('X-Amz-Date')}\n{scope}\n{hashed}"
        key = f"AWS4{KEYS['KEY']}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def lab_for(folder: Path, site: Site, environ: dict[str, str]) -> Lab:
    lab = Lab(folder, site, environ=environ)
    s3 = replace(lab.policy.s3, region="eu-central-1", access_key_env="KEY_ID", secret_key_env="KEY")
    lab.policy = replace(lab.policy, s3=s3)
    return lab


def test_an_object_of_a_private_bucket(tmp_path: Path, site: Site) -> None:
    """ORCH-3072"""
    Bucket(site)
    lab = lab_for(tmp_path, site, KEYS)
    path = lab.fetch(f"s3://models/{KEY}")
    assert path.read_bytes() == MODEL
    assert "eu-central-1" in site.asked[0].target
    assert lab.fetch(f"s3://models/{KEY}") == path
    assert "if-none-match" in site.asked[1].headers, "what is there is not fetched again"


def test_a_cut_object_is_gone_on_with(tmp_path: Path, site: Site) -> None:
    Bucket(site)
    site.cuts = [1_000_000]
    assert lab_for(tmp_path, site, KEYS).fetch(f"s3://models/{KEY}", digest(MODEL)).read_bytes() == MODEL
    first, second = (asked.headers.get("range") for asked in site.asked)
    assert (first, str(second)[:6]) == (None, "bytes=")


def test_a_wrong_key_is_said(tmp_path: Path, site: Site) -> None:
    Bucket(site)
    refused = lab_for(tmp_path, site, {**KEYS, "KEY": "wrong"}).refusal(f"s3://models/{KEY}")
    assert (refused.code, "403" in str(refused)) == ("FETCH_FAILED", True)
    assert "X-Amz" not in str(refused)
    assert lab_for(tmp_path, site, {}).refusal(f"s3://models/{KEY}").code == "FETCH_FAILED"


def test_an_object_of_a_public_bucket_needs_no_key_and_no_extra(tmp_path: Path, site: Site, monkeypatch: Any) -> None:
    """ORCH-3072"""
    Bucket(site, public=True)
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert lab_for(tmp_path, site, {}).fetch(f"s3://models/{KEY}").read_bytes() == MODEL
    refused = lab_for(tmp_path, site, KEYS).refusal(f"s3://models/{KEY}")
    assert (refused.code, "orchestratord[s3]" in str(refused)) == ("NOT_INSTALLED", True)


def test_a_session_token_is_signed_too(tmp_path: Path, site: Site) -> None:
    Bucket(site)
    lab = lab_for(tmp_path, site, {**KEYS, "AWS_SESSION_TOKEN": "t/o+k=en"})
    assert lab.fetch(f"s3://models/{KEY}").read_bytes() == MODEL
    assert "X-Amz-Security-Token=t%2Fo%2Bk%3Den" in site.asked[0].target


def test_what_is_not_there_and_what_is_something_else(tmp_path: Path, site: Site) -> None:
    Bucket(site)
    lab = lab_for(tmp_path, site, KEYS)
    assert lab.refusal("s3://models/nothing.gguf").code == "NOT_FOUND"
    assert lab.refusal(f"s3://models/{KEY}", digest(b"")).code == "UNTRUSTED_ARTIFACT"
    assert lab.kept == []
