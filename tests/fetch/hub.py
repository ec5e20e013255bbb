"""A hub: what huggingface_hub asks of one, over a Site. `tests/fetch/test_tools.py` has that client ask it."""

from __future__ import annotations

import hashlib
import json

from tests.fetch.site import Asked, Reply, Site

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubSite:
    """`repos`: name -> file -> bytes. Files of 1 KiB and more are large: they are on `cdn`, by their sha256."""

    def __init__(self, site: Site, cdn: Site, *, host: str = "127.0.0.1", page: int = 1000) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.moved: dict[str, str] = {}
        self.private: set[str] = set()
        self._site, self._cdn, self._host, self._page = site, cdn, host, page
        site.answer = self.answer  # type: ignore[method-assign]

    def answer(self, asked: Asked) -> Reply:
        path, mark, query = asked.target.partition("?")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if repo in self.moved:
            return Reply(307, headers={"Location": path.replace(repo, self.moved[repo]) + mark + query})
        if api:
            return self._api(repo, parts[4:], query, asked)
        if (refused := self._refusal(repo, asked)) is not None:
            return refused
        if len(parts) < 5 or parts[2] != "resolve" or parts[3] not in ("main", "v1", COMMIT):
            return Reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        data = self.repos[repo].get("/".join(parts[4:]))
        if data is None:
            return Reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        return self._file(asked, data)

    def _refusal(self, repo: str, asked: Asked) -> Reply | None:
        if repo not in self.repos or (repo in self.private and "authorization" not in asked.headers):
            return Reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})  # the hub does not tell which
        return None

    def _file(self, asked: Asked, data: bytes) -> Reply:
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if len(data) < 1024:
            return Reply(200, data, {**headers, "ETag": f'"{_blob(data)}"'})
        sha = hashlib.sha256(data).hexdigest()
        self._cdn.files[f"/blobs/{sha}"] = data
        linked = {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data)), "ETag": f'"{sha}"'}
        where = self._cdn.at(f"/blobs/{sha}?X-Amz-Signature=abc%2Bdef", self._host)
        return Reply(302, headers={**headers, **linked, "Location": where})

    def _api(self, repo: str, rest: list[str], query: str, asked: Asked) -> Reply:
        if (refused := self._refusal(repo, asked)) is not None:
            return refused
        files = sorted(self.repos[repo].items())
        if rest[:1] == ["revision"]:
            siblings = [{"rfilename": name} for name, _ in files]
            return _json(
                {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            )
        if rest[:1] != ["tree"]:
            return Reply(404)
        wanted = [f for f in files if "recursive=true" in query or "/" not in f[0]]
        start = int(query.partition("cursor=")[2] or 0)
        more = start + self._page < len(wanted)
        link = f'<{self._site.at(asked.target.split("?")[0])}?cursor={start + self._page}>; rel="next"'
        return _json([_entry(*f) for f in wanted[start : start + self._page]], {"Link": link} if more else {})


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "oid": _blob(data), "size": len(data), "path": name}
    if len(data) >= 1024:
        sha = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
    return entry


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(body: object, headers: dict[str, str] | None = None) -> Reply:
    return Reply(200, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
