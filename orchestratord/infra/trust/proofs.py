"""Evidence about models that are files of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from orchestratord.infra.trust import bills
from orchestratord.infra.trust.measure import Measure, off_loop, small
from orchestratord.infra.trust.root import BadKey, Root
from orchestratord.ports import Measured, ModelUnavailable, Signed


class FileProofs:
    """See `ports.ModelProofs`."""

    def __init__(self, roots: Iterable[Root] = ()) -> None:
        self._roots = {root.name: root for root in roots}
        self._measure = Measure()

    @property
    def roots(self) -> frozenset[str]:
        return frozenset(self._roots)

    async def measure(self, path: str, *, fresh: bool = False) -> Measured:
        return await off_loop(lambda stopped: self._measure(path, stopped, fresh=fresh))

    async def digest(self, path: str) -> str:
        return await off_loop(lambda _: f"sha256:{hashlib.sha256(small(path)).hexdigest()}")

    async def signature(self, path: str, model: str, measured: Measured, roots: Collection[str]) -> Signed:
        sha256 = bytes.fromhex(measured.digest.removeprefix("sha256:"))

        def check(stopped: Callable[[], bool]) -> Signed:
            from orchestratord.infra.trust import signatures  # 8 MB, and most daemons never check a signature

            content = partial(self._measure.content, model, hashlib.blake2b, measured.digest, stopped)
            return signatures.check(small(path), sha256, content, self._roots, roots)

        return await off_loop(check)

    async def listed(self, path: str, digest: str) -> frozenset[str]:
        def read(_: Callable[[], bool]) -> frozenset[str]:
            data = small(path)  # once: what is judged is what is read
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                raise ModelUnavailable("UNTRUSTED_ARTIFACT", "the bill of materials has another digest")
            return bills.listed(data)

        return await off_loop(read)


def load_roots(paths: dict[str, str]) -> list[Root]:
    """The keys of `trust.roots`. Raises BadKey, which names the root, and OSError."""
    if not paths:
        return []
    from orchestratord.infra.trust import signatures

    loaded = []
    for name, path in sorted(paths.items()):
        try:
            loaded.append(signatures.load(name, Path(path).expanduser().read_bytes()))
        except BadKey as error:
            raise BadKey(f"trust.roots.{name} ({path}): {error}") from error
    return loaded
