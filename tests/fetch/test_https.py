"""Fetching a file over https: whole, resumable, bounded, and never what was not asked for."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestratord.infra.fetch.cache import Partial
from orchestratord.infra.fetch.models import Models
from orchestratord.ports import ModelUnavailable
from tests.engines.support import turn
from tests.fetch.site import MODEL, Asked, Reply, Site, digest, serving
from tests.fetch.support import Lab

CUT = 1_000_000
OTHER = b"GGUF" + bytes(3_000_000)


def starts(site: Site) -> list[int | None]:
    """Where each request for a file began; None: at its beginning, with no Range."""
    ranges = [asked.headers.get("range") for asked in site.asked]
    return [None if wanted is None else int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in ranges]


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files["/m.gguf"] = MODEL
        yield site


@pytest.fixture
def lab(tmp_path: Path, site: Site) -> Lab:
    return Lab(tmp_path, site)


def test_a_file_comes_whole_and_lies_under_its_digest(lab: Lab, site: Site) -> None:
    """ORCH-3072"""
    path = lab.fetch(site.at("/m.gguf"))
    assert path.read_bytes() == MODEL
    name = digest(MODEL).removeprefix("sha256:")
    assert path == lab.folder / "cache" / "sha256" / name[:2] / name
    assert lab.kept == [path]
    assert path.stat().st_mode & 0o777 == 0o444
    assert lab.run(lambda models: models.verify(str(path))) == digest(MODEL)


def test_what_is_there_is_not_fetched_again(lab: Lab, site: Site) -> None:
    first = lab.fetch(site.at("/m.gguf"))
    assert lab.fetch(site.at("/m.gguf")) == first
    assert [asked.headers.get("if-none-match", "-") != "-" for asked in site.asked] == [False, True]
    site.asked.clear()
    assert lab.fetch(site.at("/m.gguf"), digest(MODEL)) == first
    assert site.asked == [], "whoever knows the digest needs nobody"


def test_a_new_version_is_noticed(lab: Lab, site: Site) -> None:
    old = lab.fetch(site.at("/m.gguf"))
    site.files["/m.gguf"] = OTHER
    new = lab.fetch(site.at("/m.gguf"))
    assert (old.read_bytes(), new.read_bytes()) == (MODEL, OTHER)


def test_what_was_fetched_serves_while_the_server_is_away(lab: Lab, site: Site) -> None:
    path = lab.fetch(site.at("/m.gguf"))
    site.routes["/m.gguf"] = lambda _: Reply(503)
    site.asked.clear()
    assert lab.fetch(site.at("/m.gguf")) == path
    assert len(site.asked) == 1, "and nobody waits for it to come back"
    assert lab.refusal(site.at("/m.gguf"), digest(OTHER)).code == "FETCH_FAILED", "but for nothing else"


def test_a_wrong_digest_fails_closed(lab: Lab, site: Site) -> None:
    refused = lab.refusal(site.at("/m.gguf"), digest(OTHER))
    assert refused.code == "UNTRUSTED_ARTIFACT"
    assert digest(MODEL) in str(refused)
    assert lab.kept == [], "nothing of it is left behind"


def test_a_cut_connection_is_gone_on_with(lab: Lab, site: Site) -> None:
    site.cuts = [CUT, CUT // 2]
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL
    first, second, third = starts(site)
    assert first is None
    assert second is not None
    assert third is not None
    assert 0 < second <= CUT
    assert second <= third <= second + CUT // 2
    assert all("if-range" in asked.headers for asked in site.asked[1:])


def test_without_range_it_begins_again(lab: Lab, site: Site) -> None:
    site.ranges = False
    site.cuts = [CUT]
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL


def test_without_a_version_nothing_is_pieced_together(lab: Lab, site: Site) -> None:
    site.etags = False
    site.cuts = [CUT]
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL
    assert starts(site) == [None, None]


def test_with_a_digest_it_is_pieced_together_all_the_same(lab: Lab, site: Site) -> None:
    site.etags = False
    site.cuts = [CUT]
    assert lab.fetch(site.at("/m.gguf"), digest(MODEL)).read_bytes() == MODEL
    assert [bool(start) for start in starts(site)] == [False, True]


def test_a_file_that_changed_meanwhile_is_not_pieced_together(lab: Lab, site: Site) -> None:
    def changed(asked: Asked) -> Reply:
        site.files["/m.gguf"] = OTHER
        return site.file(asked, MODEL)

    site.routes["/m.gguf"] = lambda asked: changed(asked) if len(site.asked) == 1 else site.file(asked, OTHER)
    site.cuts = [CUT]
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == OTHER


def test_old_bytes_of_another_version_are_found_out(lab: Lab, site: Site) -> None:
    """Pieced together by the digest alone, and the pieces do not fit: once more, from the beginning."""
    site.etags = False
    partial = lab.cache.partial(digest(MODEL))
    partial.note(None, len(MODEL))
    partial.write(OTHER[:5000])
    partial.close()
    assert lab.fetch(site.at("/m.gguf"), digest(MODEL)).read_bytes() == MODEL
    assert starts(site) == [5000, None]


def test_a_wrong_piece_is_not_taken(lab: Lab, site: Site) -> None:
    def shifted(asked: Asked) -> Reply:
        reply = site.file(asked, MODEL)
        if reply.status == 206:
            reply.headers["Content-Range"] = f"bytes 0-{len(MODEL) - 1}/{len(MODEL)}"
        return reply

    site.routes["/m.gguf"] = shifted
    site.cuts = [CUT]
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL


def test_fetching_goes_on_after_a_restart(lab: Lab, site: Site) -> None:
    """ORCH-3090: also when it failed for good the first time."""
    site.cuts = [CUT, 0, 0, 0, 0, 0, 0]
    assert lab.refusal(site.at("/m.gguf")).code == "FETCH_FAILED"
    site.asked.clear()
    site.cuts.clear()
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL
    assert [bool(start) for start in starts(site)] == [True]


def test_a_whole_file_whose_end_was_not_seen_is_enough(lab: Lab, site: Site) -> None:
    partial = lab.cache.partial(digest(MODEL))
    partial.note(None, len(MODEL))
    partial.write(MODEL)
    partial.close()
    assert lab.fetch(site.at("/m.gguf"), digest(MODEL)).read_bytes() == MODEL
    assert site.asked == []


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_what_passes_is_tried_again(lab: Lab, site: Site, status: int) -> None:
    site.routes["/m.gguf"] = lambda asked: Reply(status) if len(site.asked) < 4 else site.file(asked, MODEL)
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "NOT_FOUND", "nothing at"),
        (410, "NOT_FOUND", "nothing at"),
        (401, "FETCH_FAILED", "models.fetch.tokens"),
        (403, "FETCH_FAILED", "models.fetch.tokens"),
        (418, "FETCH_FAILED", "418"),
        (204, "FETCH_FAILED", "204"),
        (304, "FETCH_FAILED", "304"),
        (206, "FETCH_FAILED", "go on"),
    ],
)
def test_what_does_not_pass_is_said(lab: Lab, site: Site, status: int, code: str, said: str) -> None:
    site.routes["/m.gguf"] = lambda _: Reply(status)
    refused = lab.refusal(site.at("/m.gguf"))
    assert (refused.code, said in str(refused)) == (code, True), refused


def test_what_is_larger_than_allowed_is_refused_by_its_head(tmp_path: Path, site: Site) -> None:
    """ORCH-3090"""
    lab = Lab(tmp_path, site, max_bytes=len(MODEL) - 1)
    refused = lab.refusal(site.at("/m.gguf"))
    assert (refused.code, "models.fetch.max_bytes" in str(refused)) == ("UNTRUSTED_ARTIFACT", True)
    assert lab.kept == []
    assert Lab(tmp_path, site, max_bytes=len(MODEL)).fetch(site.at("/m.gguf")).read_bytes() == MODEL


def test_what_grows_beyond_what_is_allowed_is_cut_off(tmp_path: Path, site: Site) -> None:
    """ORCH-3090: a server that does not say how much there is to come."""

    def endless(_: Asked) -> Reply:
        chunk = b"%x\r\n%s\r\n" % (len(MODEL), MODEL)
        return Reply(200, chunk * 50 + b"0\r\n\r\n", {"Transfer-Encoding": "chunked"}, length=False)

    site.routes["/m.gguf"] = endless
    lab = Lab(tmp_path, site, max_bytes=2 * len(MODEL))
    assert lab.refusal(site.at("/m.gguf")).code == "UNTRUSTED_ARTIFACT"
    assert lab.kept == []


def test_chunked_without_length_is_fine(lab: Lab, site: Site) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(MODEL), MODEL)
    site.routes["/m.gguf"] = lambda _: Reply(200, body, {"Transfer-Encoding": "chunked"}, length=False)
    assert lab.fetch(site.at("/m.gguf")).read_bytes() == MODEL


def test_a_file_without_an_end_needs_a_digest(lab: Lab, site: Site) -> None:
    """Where the connection's end is the file's, a cut file looks like a whole one."""
    site.routes["/m.gguf"] = lambda _: Reply(200, MODEL, length=False)
    assert "where the file ends" in str(lab.refusal(site.at("/m.gguf")))
    assert lab.fetch(site.at("/m.gguf"), digest(MODEL)).read_bytes() == MODEL


def test_compression_nobody_asked_for_is_refused(lab: Lab, site: Site) -> None:
    site.routes["/m.gguf"] = lambda _: Reply(200, MODEL, {"Content-Encoding": "gzip"})
    assert "compresses" in str(lab.refusal(site.at("/m.gguf")))
    assert site.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said_and_leaves_nothing(lab: Lab, site: Site, monkeypatch: Any, number: int) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Partial, "write", fail)
    refused = lab.refusal(site.at("/m.gguf"))
    assert refused.code == ("FETCH_FAILED" if number == errno.EIO else "DISK_FULL")
    assert lab.kept == []


def test_a_disk_that_would_be_full_is_not_filled(lab: Lab, site: Site, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))  # type: ignore[attr-defined]
    refused = lab.refusal(site.at("/m.gguf"))
    assert (refused.code, "1000 are free" in str(refused)) == ("DISK_FULL", True)


def test_many_who_ask_for_one_reference_share_one_download(lab: Lab, site: Site) -> None:
    async def crowd(models: Models) -> set[str]:
        return set(await asyncio.gather(*(models.resolve(site.at("/m.gguf")) for _ in range(50))))

    assert len(lab.run(crowd)) == 1
    assert len(site.asked) == 1


def test_one_digest_under_fifty_names_is_one_download(lab: Lab, site: Site) -> None:
    for n in range(50):
        site.files[f"/{n}.gguf"] = MODEL

    async def crowd(models: Models) -> set[str]:
        return set(await asyncio.gather(*(models.resolve(site.at(f"/{n}.gguf"), digest(MODEL)) for n in range(50))))

    (path,) = lab.run(crowd)
    assert lab.kept == [Path(path)]
    assert len(site.asked) == 1


def test_one_reference_with_and_without_a_digest(lab: Lab, site: Site) -> None:
    async def both(models: Models) -> set[str]:
        ref = site.at("/m.gguf")
        return set(await asyncio.gather(models.resolve(ref), models.resolve(ref, digest(MODEL))))

    assert len(lab.run(both)) == 1


@pytest.mark.parametrize("step", ["known", "remember", "partial", "keep"])
def test_a_disk_that_fails_at_any_step_is_said(lab: Lab, site: Site, monkeypatch: Any, step: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lab.cache, step, fail)
    assert lab.refusal(site.at("/m.gguf")).code == "DISK_FULL"


def test_one_content_under_two_names_is_kept_once(lab: Lab, site: Site) -> None:
    site.files["/twin.gguf"] = MODEL
    assert lab.fetch(site.at("/m.gguf")) == lab.fetch(site.at("/twin.gguf"))
    assert len(lab.kept) == 1


def test_who_stops_waiting_does_not_stop_the_others(lab: Lab, site: Site) -> None:
    """And when nobody waits any more, fetching ends, and is gone on with later."""
    hold = threading.Event()
    site.routes["/m.gguf"] = lambda asked: (
        Reply(200, MODEL, {"ETag": '"1"'}, pause=7000, hold=hold) if len(site.asked) == 1 else site.file(asked, MODEL)
    )
    ref = site.at("/m.gguf")

    async def impatient(models: Models) -> None:
        first, second = (asyncio.ensure_future(models.resolve(ref)) for _ in range(2))
        while (models.progress(ref) or (0, 0))[1] != len(MODEL):
            await turn()  # nothing tells that the head is here
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert models.progress(ref) == (0, len(MODEL))
        assert not second.done()
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert models.progress(ref) is None
        hold.set()
        await models.resolve(ref)

    lab.run(impatient)
    assert lab.fetch(ref, digest(MODEL)).read_bytes() == MODEL


def test_silence_has_an_end(tmp_path: Path, site: Site) -> None:
    """A server that stops sending is a server that failed; the time one file may take has an end too."""
    hold = threading.Event()
    site.routes["/m.gguf"] = lambda _: Reply(200, MODEL, pause=10, hold=hold)
    assert "in time" in str(Lab(tmp_path, site, idle_s=0.02).refusal(site.at("/m.gguf")))
    assert "total_ms" in str(Lab(tmp_path, site, total_s=0.05).refusal(site.at("/m.gguf")))
    hold.set()


def test_a_server_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    with serving(trusted=False) as site:
        site.files["/m.gguf"] = MODEL
        refused = Lab(tmp_path, site).refusal(site.at("/m.gguf"))
        assert (refused.code, "ca_roots" in str(refused), site.asked) == ("UNTRUSTED_ARTIFACT", True, [])


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    with serving(hosts=("elsewhere.test",)) as site:
        assert Lab(tmp_path, site).refusal(site.at("/m.gguf")).code == "UNTRUSTED_ARTIFACT"
        assert site.asked == []


def test_a_file_of_this_machine_can_have_a_digest_too(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "home.gguf").write_bytes(MODEL)
    lab.roots = [str(tmp_path)]
    assert lab.fetch("file:home.gguf", digest(MODEL)) == tmp_path / "home.gguf"
    assert lab.refusal("file:home.gguf", digest(OTHER)).code == "UNTRUSTED_ARTIFACT"
    assert (tmp_path / "home.gguf").exists(), "it is not ours to remove"


def test_what_nobody_came_back_for_is_cleared_away(lab: Lab, site: Site) -> None:
    """Halves of files are kept for a week."""
    incoming = lab.folder / "cache" / "incoming"
    for name in ("old", "new"):
        partial = lab.cache.partial(name)
        partial.note(None, None)
        partial.close()
        if name == "old":
            for path in incoming.iterdir():
                os.utime(path, (1, 1))
    lab.fetch(site.at("/m.gguf"))
    assert len(list(incoming.iterdir())) == 2


def test_a_page_is_no_model(lab: Lab, site: Site) -> None:
    site.files["/m.gguf"] = b"<!doctype html>"
    path = lab.fetch(site.at("/m.gguf"))
    with pytest.raises(ModelUnavailable, match="not a GGUF"):
        lab.run(lambda models: models.verify(str(path)))
