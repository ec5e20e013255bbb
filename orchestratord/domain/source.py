"""Where a model comes from, in one spelling: sources that mean the same are the same text."""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from urllib.parse import urlsplit

_SCHEME = re.compile(r"^(hf|file|https|s3|oci):")
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")


def normalise(source: str) -> str:
    """The one spelling of a source. Raises ValueError, which says what is wrong with it."""
    found = _SCHEME.match(source)
    if found is None:
        raise ValueError(f"{source!r} begins with none of hf:, file:, https://, s3:// and oci://.")
    scheme, rest = found[1], source[found.end() :]
    if ".." in re.split(r"[/\\?#]", rest) or "\0" in rest:
        raise ValueError(f"{source!r} must not contain '..'. Write the path out.")
    if scheme == "hf":
        return _hub(source, rest)
    return _file(source, rest) if scheme == "file" else _url(source, scheme)


def is_reference(text: str) -> bool:
    """False for paths and for names of pools."""
    return _SCHEME.match(text) is not None


@lru_cache(maxsize=4096)
def key(ref: str) -> str:
    """What a model reference is compared by: its one spelling, or itself if it is the name of a pool."""
    try:
        return normalise(ref)
    except ValueError:
        return ref


def registry(source: str) -> str | None:
    """Who serves a source, as `allowed_registries` names it: a host, a bucket, `hf:` and an organisation.

    None for files of this machine, which `models.roots` governs.
    """
    spelt = key(source)
    scheme, _, rest = spelt.partition(":")
    if scheme == "file":
        return None
    return f"hf:{rest.split('/')[0]}" if scheme == "hf" else rest.removeprefix("//").split("/")[0]


def _hub(source: str, rest: str) -> str:
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if len(parts) < 2:
        raise ValueError(f"{source!r} needs an organisation and a repository, as in hf:org/repo.")
    return "hf:" + "/".join(parts)


def _file(source: str, rest: str) -> str:
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"{source!r} names another machine: a file lies on this one.")
        rest = slash + path
    path = posixpath.normpath(rest) if rest else ""
    if path in ("", ".", "/", "//"):
        raise ValueError(f"{source!r} names no file.")
    return f"file:/{path.lstrip('/')}" if path.startswith("/") else f"file:{path}"


def _url(source: str, scheme: str) -> str:
    try:
        parts = urlsplit(source)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{source!r} is no URL: {error}.") from None
    if not host:
        raise ValueError(f"{source!r} needs a host, as in {scheme}://host/path.")
    if "@" in parts.netloc:
        raise ValueError("A source must not contain a user or a password.")
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != 443:
        place += f":{port}"
    path = _ESCAPE.sub(lambda escape: escape[0].upper(), parts.path)
    path = "/".join(part for part in path.split("/") if part != ".") or "/"
    if scheme == "oci" and ":" not in path.rsplit("/", 1)[-1] and "@" not in path:
        path += ":latest"
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{place}{path}{query}"
