"""The one parser of https URLs: for references, for redirects, for the configuration. Stricter than any client.

Parsers that are generous each in their own way are how requests go astray: here a URL is ASCII, has a host that is
a name or an address in its one canonical form, and neither user, password, backslash nor fragment.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

HTTPS_PORT = 443
MAX_CHARS = 8192

_PCHAR = r"A-Za-z0-9._~!$&'()*+,;=:@%-"
_URL = re.compile(
    r"(?i:https)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?"
    rf"(?P<path>(?:/[{_PCHAR}]*)*)(?P<query>\?[{_PCHAR}/?]*)?"
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class BadReference(ValueError):
    """What was given cannot be used; the message says why and what is expected instead."""


@dataclass(frozen=True, slots=True)
class Url:
    """An https URL. `host`: lower-case name, dotted IPv4, or IPv6 without brackets. `target`: path and query."""

    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        return netloc(self.host, self.port)

    def __str__(self) -> str:
        return f"https://{self.netloc}{self.target}"

    @property
    def tidied(self) -> Url:
        """The same with its escapes in their one form."""
        return replace(self, target=_tidy(self.target))

    @property
    def shown(self) -> str:
        """Without the query, which may hold a signature: for messages and logs."""
        return str(self).partition("?")[0]


def netloc(host: str, port: int) -> str:
    """host:port as it stands in an https URL and in a Host header."""
    whole = authority(host, port)
    return whole.removesuffix(f":{port}") if port == HTTPS_PORT else whole


def authority(host: str, port: int) -> str:
    """host:port, of an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_url(text: str) -> Url:
    """Raises BadReference."""
    if len(text) > MAX_CHARS:
        raise BadReference(f"a URL of {len(text)} characters; at most {MAX_CHARS} are allowed")
    found = _URL.fullmatch(text)
    if found is None:
        raise BadReference("it is not https://host[:port]/path without user, fragment, backslash, space or non-ASCII")
    port = int(found["port"] or HTTPS_PORT)
    if not 1 <= port <= 65535:
        raise BadReference(f"there is no port {port}")
    path, query = found["path"] or "/", found["query"] or ""
    if any(segment in (".", "..") for segment in _tidy(path).split("/")):
        raise BadReference("its path has a '.' or '..' segment; write the path out")
    _tidy(query)
    return Url(parse_host(found["host"]), port, path + query)  # as given: it may be signed


def join(base: Url, location: str) -> Url:
    """Where a redirect from `base` leads. Raises BadReference."""
    if location.startswith("//"):
        return parse_url(f"https:{location}")
    if location.startswith("/"):
        return parse_url(f"https://{base.netloc}{location}")
    if ":" in location.partition("/")[0].partition("?")[0]:
        return parse_url(location)
    folder = base.target.partition("?")[0].rpartition("/")[0]
    return parse_url(f"https://{base.netloc}{folder}/{location}")


def parse_host(text: str) -> str:
    """A host in its canonical form, IPv6 without brackets. Raises BadReference."""
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError:
            raise BadReference(f"{text} is no IPv6 address") from None
    name = text.lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # 127.1, 0x7f.1, 2130706433: some resolvers take them for addresses
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise BadReference(f"{text} is no host: write an address as four decimal numbers") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadReference(f"{text} is no host name: labels of letters, digits and inner hyphens, joined by dots")
    return name


def host_pattern(text: str, *, wildcard: bool = False) -> str:
    """An entry of a list of hosts in its canonical form. Raises BadReference."""
    star = "*." if wildcard and text.startswith("*.") else ""
    url = parse_url(f"https://{text.removeprefix(star)}/")
    if url.target != "/" or "/" in text:
        raise BadReference(f"{text!r} must be a host, perhaps with :port")
    if star and is_address(url.host):
        raise BadReference(f"{text!r}: an address has no names below it")
    return star + url.netloc


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _tidy(text: str) -> str:
    """Escapes in their one form: none for what needs none, capital digits for the rest."""

    def one(found: re.Match[str]) -> str:
        if found[1] is None:
            raise BadReference("it has a % that is not followed by two hexadecimal digits")
        char = chr(int(found[1], 16))
        if char < " " or char in "\\\x7f":
            raise BadReference("it has an escaped control character or backslash")
        return char if char in _UNRESERVED else found[0].upper()

    return _ESCAPE.sub(one, text)
