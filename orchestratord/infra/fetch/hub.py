"""Hugging Face hubs, and what speaks like one: which files a reference means, at which commit, with which digests.

HEAD /{repo}/resolve/{revision}/{file}           X-Repo-Commit, X-Linked-Etag (sha256 of a large file), -Size
GET  /api/models/{repo}/revision/{revision}      {sha}
GET  /api/models/{repo}/tree/{sha}               [{type, path, size, lfs?: {oid}}], more by Link: rel="next"
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from orchestratord.domain.modelref import HubRef
from orchestratord.domain.url import BadReference, Url, join
from orchestratord.infra.fetch.cache import NAME
from orchestratord.infra.fetch.download import Source
from orchestratord.infra.fetch.https import REDIRECTS, Answer, Https, decode
from orchestratord.infra.fetch.policy import refused
from orchestratord.ports import ModelUnavailable

MAX_REPLY = 8 << 20
MAX_PAGES, MAX_HOPS, MAX_NAMED = 20, 5, 10
# What engines load that is data and nothing else: no pickles, no code.
DATA = (".safetensors", ".json", ".txt", ".model", ".tiktoken", ".jinja")
T = TypeVar("T")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SIZE = re.compile(r"[0-9]{1,18}")
API = "/api/models"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEXT = re.compile(r'<([^>]+)>; *rel="next"')
PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf")


class Large(msgspec.Struct):
    oid: str


class Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    lfs: Large | None = None


class Revision(msgspec.Struct):
    sha: str


class Hub:
    def __init__(self, https: Https, root: Url) -> None:
        self._https = https
        self._root = root

    async def sources(self, ref: HubRef) -> dict[str, Source]:
        """Name -> where it is. Raises ModelUnavailable and Interrupted."""
        if ref.file is not None:
            names = parts(ref.file) or [ref.file]
            return {name.rpartition("/")[2]: await self._file(ref, name) for name in names}
        commit = await self._commit(ref)
        entries = await self._entries(ref, commit)
        models = sorted(entry.path for entry in entries if entry.path.endswith(".gguf"))
        if models:
            wanted = only(ref, models)
        else:
            wanted = [entry.path for entry in entries if entry.path.endswith(DATA)]
            if not any(path.endswith(".safetensors") for path in wanted):
                raise ModelUnavailable("NOT_FOUND", f"{ref} has neither GGUF nor safetensors files.")
        there = {entry.path: entry for entry in entries}
        return {path.rpartition("/")[2]: self._entry(ref, commit, there[path]) for path in wanted}

    async def _file(self, ref: HubRef, file: str) -> Source:
        """One file. A redirect within the hub means that the repository has moved, else that the file is large."""
        url = self._at(f"/{ref.repo}/resolve/{ref.revision}/{file}")
        for _ in range(MAX_HOPS):
            async with self._https.request("HEAD", url, follow=False) as answer:
                self._judge(ref, answer, 200, *REDIRECTS)
                headers = answer.headers
                elsewhere = "X-Linked-Etag" in headers
                if answer.status not in REDIRECTS or elsewhere:
                    oid, size = headers.get("X-Linked-Etag", "").strip('"'), headers.get("X-Linked-Size", "")
                    commit = headers.get("X-Repo-Commit", "")
                    break
                url = self._moved(ref, answer)
        else:
            raise ModelUnavailable("FETCH_FAILED", f"{ref}: the hub redirects more than {MAX_HOPS} times.")
        if _COMMIT.fullmatch(commit):
            url = Url(url.host, url.port, url.target.replace(f"/resolve/{ref.revision}/", f"/resolve/{commit}/", 1))
        digest = f"sha256:{oid}" if _SHA256.fullmatch(oid) else None
        return Source(str(url), url, digest, int(size) if _SIZE.fullmatch(size) and digest else None)

    def _moved(self, ref: HubRef, answer: Answer) -> Url:
        """Where a repository is now: of the same organisation, or whoever is trusted would vouch for somebody else."""
        try:
            url = join(answer.url, answer.headers.get("Location", ""))
        except BadReference as error:
            raise refused(f"{answer.url.shown} redirects where nothing can be fetched: {error}.") from None
        if url.netloc != self._root.netloc:
            raise ModelUnavailable("FETCH_FAILED", f"{answer.url.shown} leads to {url.netloc} without a checksum.")
        organisation, _, rest = url.target.removeprefix(API).lstrip("/").partition("/")
        if organisation.casefold() != ref.repo.partition("/")[0].casefold():
            repo = f"{organisation}/{rest.partition('/')[0]}"
            raise refused(f"{ref} has moved to another organisation: name hf:{repo} if you trust it.")
        return url

    async def _commit(self, ref: HubRef) -> str:
        told, _, _ = await self._told(ref, self._at(f"{API}/{ref.repo}/revision/{ref.revision}"))
        commit = _decode(ref, told, Revision).sha
        if not _COMMIT.fullmatch(commit):
            raise ModelUnavailable("FETCH_FAILED", f"{ref}: the hub names {commit[:64]!r} as its commit.")
        return commit

    async def _entries(self, ref: HubRef, commit: str) -> list[Entry]:
        """The files at the top whose names are plain words."""
        found: list[Entry] = []
        url = self._at(f"{API}/{ref.repo}/tree/{commit}?recursive=false&expand=false")
        for _ in range(MAX_PAGES):
            told, link, url = await self._told(ref, url)
            page = _decode(ref, told, list[Entry])
            found += [entry for entry in page if entry.type == "file" and NAME.fullmatch(entry.path)]
            more = _NEXT.search(link)
            if more is None:
                return found
            url = join(url, more[1])
        raise ModelUnavailable("FETCH_FAILED", f"{ref} has too many files; name the one that is meant.")

    async def _told(self, ref: HubRef, url: Url) -> tuple[bytes, str, Url]:
        """What the hub's API says, its Link, and where it said so."""
        for _ in range(MAX_HOPS):
            async with self._https.request("GET", url, follow=False) as answer:
                if answer.status not in REDIRECTS:
                    self._judge(ref, answer, 200)
                    return await answer.body(MAX_REPLY), answer.headers.get("Link", ""), url
                url = self._moved(ref, answer)
        raise ModelUnavailable("FETCH_FAILED", f"{ref}: the hub redirects more than {MAX_HOPS} times.")

    def _entry(self, ref: HubRef, commit: str, entry: Entry) -> Source:
        url = self._at(f"/{ref.repo}/resolve/{commit}/{entry.path}")
        large = entry.lfs is not None and _SHA256.fullmatch(entry.lfs.oid)
        digest = f"sha256:{entry.lfs.oid}" if entry.lfs is not None and large else None
        return Source(str(url), url, digest, entry.size)

    def _at(self, target: str) -> Url:
        return join(self._root, target)

    @staticmethod
    def _judge(ref: HubRef, answer: Answer, *fine: int) -> None:
        """A hub hides what one may not see: it says that it wants a token, also for what does not exist."""
        if answer.status == 401:
            raise ModelUnavailable(
                "NOT_FOUND",
                f"{ref} does not exist, or wants a token. Name the environment variable with it in "
                f"models.fetch.tokens for {answer.url.netloc}.",
            )
        answer.unless_fine(*fine)


def parts(file: str) -> list[str]:
    """All parts of a model in several files, of which one is named; empty if it is not in several."""
    found = PART.fullmatch(file)
    if found is None or not 1 <= int(found["part"]) <= int(found["parts"]) <= 999:
        return []
    return [f"{found['stem']}-{n:05}-of-{found['parts']}.gguf" for n in range(1, int(found["parts"]) + 1)]


def only(ref: object, models: list[str]) -> list[str]:
    """The files of the one model among these. Raises ModelUnavailable when there are several."""
    first = parts(models[0]) or models[:1]
    if sorted(first) != models:
        named = ", ".join(models[:MAX_NAMED]) + (", …" if len(models) > MAX_NAMED else "")
        raise ModelUnavailable("NOT_FOUND", f"{ref} has several models. Name the file: {named}.")
    return first


def _decode(ref: HubRef, body: bytes, kind: type[T]) -> T:
    try:
        return decode(body, kind)
    except msgspec.DecodeError as error:
        raise ModelUnavailable("FETCH_FAILED", f"{ref}: the hub does not answer like a hub ({error}).") from None
