"""Model references: what may stand for a model besides the name of a pool, and the one form each of them has.

    hf:org/repo[@revision]                 all of a repository of a hub
    hf:org/repo[@revision]/folder/file     one file of it
    file:/absolute, file:relative          a file or folder of this machine
    https://host[:port]/path[?query]
    s3://bucket/key
    oci://host[:port]/repository[:tag][@sha256:<64 hex>]

Two references mean the same source exactly if they normalise to the same text. Nothing here looks anywhere: whether a
reference may be used is for the policy, and whether there is something behind it for the fetcher to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, TypeAlias, get_args

from orchestratord.domain.url import BadReference, Url, netloc, parse_url

Scheme = Literal["hf", "file", "https", "s3", "oci"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
MAX_REF_CHARS = 512

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_FILE = r"[A-Za-z0-9._~!$&'()*+,;=@-]+(?:/[A-Za-z0-9._~!$&'()*+,;=@-]+)*"
_HF = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}))?(?:/(?P<file>{_FILE}))?"
)
_S3 = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>[A-Za-z0-9._~!$&'()*+,;=:@/-]+)")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_OCI = re.compile(
    rf"(?P<host>[^/]+)/(?P<repository>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class HubRef:
    """`file` None: the whole repository. `revision` is a branch, a tag or a commit."""

    scheme: ClassVar[Scheme] = "hf"
    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repo}{revision}" + (f"/{self.file}" if self.file is not None else "")


@dataclass(frozen=True, slots=True)
class FileRef:
    """`path` is absolute, or relative to one of the configured roots; never with `..`."""

    scheme: ClassVar[Scheme] = "file"
    path: str

    def __str__(self) -> str:
        return f"file:{self.path}"


@dataclass(frozen=True, slots=True)
class WebRef:
    scheme: ClassVar[Scheme] = "https"
    url: Url

    def __str__(self) -> str:
        return str(self.url)


@dataclass(frozen=True, slots=True)
class BucketRef:
    scheme: ClassVar[Scheme] = "s3"
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class RegistryRef:
    """Exactly one of `tag` and `digest` is set: a digest leaves nothing for a tag to say."""

    scheme: ClassVar[Scheme] = "oci"
    host: str
    port: int
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        version = f"@{self.digest}" if self.digest is not None else f":{self.tag}"
        return f"oci://{netloc(self.host, self.port)}/{self.repository}{version}"


ModelRef: TypeAlias = HubRef | FileRef | WebRef | BucketRef | RegistryRef


def normalise(text: str) -> str:
    """The one form of a reference. Raises BadReference, also for what is no reference but may name a pool."""
    return str(parse(text))


def is_reference(text: str) -> bool:
    """False for paths and for names of pools."""
    try:
        parse(text)
    except BadReference:
        return False
    return True


@lru_cache(maxsize=4096)
def key(text: str) -> str:
    """What a model reference is compared by: its one form, or itself if it is the name of a pool."""
    try:
        return normalise(text)
    except BadReference:
        return text


def registry(text: str) -> str | None:
    """Who serves a reference, as `allowed_registries` names it: a host, a bucket, `hf:` and an organisation.

    None for what is of this machine: files, which `models.roots` governs, and names of pools.
    """
    if not is_reference(text):
        return None
    match parse(text):
        case HubRef(repo=repo):
            return f"hf:{repo.partition('/')[0]}"
        case WebRef(url=url):
            return netloc(url.host, url.port)
        case BucketRef(bucket=bucket):
            return bucket
        case RegistryRef(host=host, port=port):
            return netloc(host, port)
    return None


def parse(text: str) -> ModelRef:
    """Raises BadReference."""
    if len(text) > MAX_REF_CHARS:
        raise BadReference(f"A model reference of {len(text)} characters; at most {MAX_REF_CHARS} are allowed.")
    if _CONTROL.search(text):
        raise BadReference(f"{text!r} has a space or a control character; a model reference has none.")
    scheme, colon, rest = text.partition(":")
    parser = _PARSERS.get(scheme)
    if parser is None or not colon:
        raise BadReference(
            f"{text!r} is no model reference: it begins with none of hf:, file:, https://, s3://, oci://."
        )
    try:
        return parser(rest)
    except BadReference as error:
        raise BadReference(f"{text!r} is no model reference: {error}.") from None


def _hub(rest: str) -> HubRef:
    found = _HF.fullmatch(rest.removeprefix("//"))
    if found is None or ".." in found["repo"] or "--" in found["repo"] or found["repo"].endswith(".git"):
        raise BadReference("expected hf:org/repo or hf:org/repo/file.gguf, each with @revision after repo if wanted")
    if found["file"] is not None:
        _no_dots(found["file"])
    return HubRef(found["repo"], found["revision"] or "main", found["file"])


def _file(rest: str) -> FileRef:
    if rest.startswith("//"):
        rest = rest[2:]
        if not rest.startswith("/"):
            raise BadReference("file: names no host; expected file:/absolute/path or file:path/under/a/root")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if not parts:
        raise BadReference("it names no file; expected file:/absolute/path or file:path/under/a/root")
    if ".." in parts:
        raise BadReference("it must not contain '..'; write the path out")
    return FileRef("/" * rest.startswith("/") + "/".join(parts))


def _web(rest: str) -> WebRef:
    url = parse_url(f"https:{rest}").tidied
    if url.target.partition("?")[0].endswith("/"):
        raise BadReference("it names no file; expected https://host/path/to/model.gguf")
    return WebRef(url)


def _bucket(rest: str) -> BucketRef:
    found = _S3.fullmatch(rest.removeprefix("//")) if rest.startswith("//") else None
    if found is None or ".." in found["bucket"] or found["key"].endswith("/"):
        raise BadReference("expected s3://bucket/key of letters, digits and punctuation without % # ? \\ and spaces")
    _no_dots(found["key"])
    if "" in found["key"].split("/"):
        raise BadReference("its key has an empty segment; store the object under another key")
    return BucketRef(found["bucket"], found["key"])


def _registry(rest: str) -> RegistryRef:
    found = _OCI.fullmatch(rest.removeprefix("//")) if rest.startswith("//") else None
    if found is None:
        raise BadReference(
            "expected oci://host[:port]/repository[:tag][@sha256:<64 hex>], the repository in lower case"
        )
    url = parse_url(f"https://{found['host']}/")
    tag = None if found["digest"] else found["tag"] or "latest"
    return RegistryRef(url.host, url.port, found["repository"], tag, found["digest"])


def _no_dots(path: str) -> None:
    if any(segment in (".", "..") for segment in path.split("/")):
        raise BadReference("it has a '.' or '..' segment; write the name out")


_PARSERS: dict[str, Callable[[str], ModelRef]] = {
    "hf": _hub,
    "file": _file,
    "https": _web,
    "s3": _bucket,
    "oci": _registry,
}
