"""One file from one URL into the cache: streamed, gone on with where it broke off, and judged before it is kept."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestratord.domain.url import Url
from orchestratord.infra.fetch.cache import Cache, Known, Partial
from orchestratord.infra.fetch.https import Answer, Https, Interrupted
from orchestratord.infra.fetch.policy import FetchPolicy, refused
from orchestratord.infra.fetch.threads import off_loop
from orchestratord.ports import Clock, ModelUnavailable

ATTEMPTS = 5  # in a row without a byte of progress
PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
WRITE_BYTES = 4 << 20
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a file is, and what is known of it. `name` is what it is gone on with under after a break."""

    name: str
    url: Url
    digest: str | None = None  # sha256:<64 hex>, what it must have
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None


@dataclass(slots=True)
class Progress:
    """Bytes that are there, and bytes in all as far as the servers say."""

    done: int = 0
    total: int = 0


class Downloads:
    def __init__(
        self, https: Https, cache: Cache, policy: FetchPolicy, clock: Clock, *, pause_s: float = PAUSE_S
    ) -> None:
        self._https = https
        self._cache = cache
        self._policy = policy
        self._clock = clock
        self._pause_s = pause_s

    async def get(self, source: Source, progress: Progress, known: Known | None = None) -> tuple[str, str | None]:
        """The file's digest once it is in the cache, and its ETag. `known` is the version that is there already.

        Raises ModelUnavailable; then nothing of it is kept, unless it may be gone on with.
        """
        if source.digest is not None and await off_loop(self._cache.has, source.digest):
            progress.done += source.size or 0
            return source.digest, None
        try:
            await off_loop(self._cache.clear_away, self._clock.wall_ms() / 1000)
            partial = await off_loop(self._cache.partial, source.digest or source.name)
            try:
                async with self._clock.limit(self._policy.total_s):
                    return await self._whole(source, partial, progress, known)
            finally:
                await off_loop(partial.close)
        except TimeoutError:
            raise ModelUnavailable(
                "FETCH_FAILED",
                f"{source.url.shown} was not there within {self._policy.total_s:g} s. Try again: it goes on where it "
                "was. More time is models.fetch.total_ms.",
            ) from None
        except OSError as error:
            raise disk_trouble(error, source.url.shown) from error

    async def _whole(
        self, source: Source, partial: Partial, progress: Progress, known: Known | None
    ) -> tuple[str, str | None]:
        progress.done += partial.size
        before = partial.size
        old_bytes = bool(before)
        try:
            if await self._until_there(source, partial, progress, known) == 304:
                assert known is not None
                assert known.digest is not None
                await off_loop(partial.discard)
                return known.digest, known.etag
            if source.digest is not None and partial.digest != source.digest and old_bytes:
                progress.done -= partial.size  # they may have been of another version
                await off_loop(partial.restart)
                await self._until_there(source, partial, progress, None)
            if source.digest not in (None, partial.digest):
                raise refused(f"{source.url.shown} has digest {partial.digest}, and {source.digest} was asked for.")
            return await off_loop(self._cache.keep, partial), partial.state.etag
        except ModelUnavailable as error:
            if error.code != "FETCH_FAILED":
                await off_loop(partial.discard)
            raise
        except OSError:
            await off_loop(partial.discard)
            raise

    async def _until_there(self, source: Source, partial: Partial, progress: Progress, known: Known | None) -> int:
        """Ask again as long as it gets any further. Gives the last status."""
        failures = 0
        while True:
            size = partial.size
            try:
                return await self._once(source, partial, progress, known)
            except Interrupted as error:
                failures = 1 if partial.size > size else failures + 1
                # With a version to fall back on nobody has to wait for a server that does not answer.
                patience = ATTEMPTS if known is None or partial.size else 1
                if failures >= patience:
                    raise ModelUnavailable("FETCH_FAILED", f"{error}. Attempts: {failures}.") from None
            await self.pause(failures)

    async def pause(self, failures: int) -> None:
        """Before another attempt, after so many in a row that failed."""
        await self._clock.sleep(min(self._pause_s * 2 ** (failures - 1), PAUSE_MAX_S))

    async def _once(self, source: Source, partial: Partial, progress: Progress, known: Known | None) -> int:
        if partial.size and source.digest == partial.digest:
            return 200  # all of it is there, only its end was not seen
        headers = {**source.headers, **_conditions(source, partial, known)}
        async with self._https.request("GET", source.url, headers, authorization=source.authorization) as answer:
            if answer.status == 416 or (answer.status == 206 and not _goes_on(answer, partial)):
                progress.done -= partial.size
                await off_loop(partial.restart)
                raise Interrupted(f"{source.url.shown} does not go on where it broke off")
            answer.unless_fine(200, 206, *([304] if known is not None and not partial.size else []))
            if answer.status == 304:
                return 304
            if answer.status == 200 and partial.size:
                progress.done -= partial.size
                await off_loop(partial.restart)
            total = self._expected(source, partial, answer)
            missing, free = (total or 0) - partial.size, await off_loop(self._cache.free)
            if missing > free:
                raise OSError(errno.ENOSPC, f"{missing} bytes are missing and {free} are free")
            progress.total = max(progress.total, progress.done + (total or 0) - partial.size)
            await off_loop(partial.note, answer.headers.get("ETag"), total)
            await self._stream(source, partial, progress, answer, total)
            return answer.status

    def _expected(self, source: Source, partial: Partial, answer: Answer) -> int | None:
        """Bytes of the whole file, checked against everything that bounds them."""
        length = answer.headers.get("Content-Length", "")
        total = partial.size + int(length) if length.isdecimal() else source.size
        if source.size is not None and total != source.size:
            raise refused(f"{source.url.shown} has {total} bytes, and {source.size} were announced.")
        if total is None and not answer.ends and source.digest is None:
            raise ModelUnavailable("FETCH_FAILED", f"{source.url.shown} does not say where the file ends.")
        self._bound(source, total or 0)
        return total

    def _bound(self, source: Source, size: int) -> None:
        bound = self._policy.max_bytes if source.size is None else min(self._policy.max_bytes, source.size)
        if size > bound:
            raise refused(
                f"{source.url.shown} has more than {bound} bytes. If that is meant, raise models.fetch.max_bytes."
            )

    async def _stream(
        self, source: Source, partial: Partial, progress: Progress, answer: Answer, total: int | None
    ) -> None:
        held = bytearray()

        async def flush() -> None:
            data = bytes(held)
            held.clear()
            await off_loop(partial.write, data)
            progress.done += len(data)

        try:
            async for data in answer.chunks():
                held += data
                self._bound(source, partial.size + len(held))
                if len(held) >= WRITE_BYTES:
                    await flush()
        except Interrupted:
            await flush()  # it is gone on with behind them
            raise
        await flush()
        if total is not None and partial.size != total:
            raise Interrupted(f"{source.url.shown} sent {partial.size} of {total} bytes")


def _conditions(source: Source, partial: Partial, known: Known | None) -> dict[str, str]:
    """Go on behind what is there, provided that it is the same version; or nothing, if that is known already."""
    if not partial.size:
        return {"If-None-Match": known.etag} if known is not None and known.etag is not None else {}
    etag = partial.state.etag
    if etag is not None and not etag.startswith("W/"):
        return {"Range": f"bytes={partial.size}-", "If-Range": etag}
    return {"Range": f"bytes={partial.size}-"} if source.digest is not None else {}


def _goes_on(answer: Answer, partial: Partial) -> bool:
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == partial.size and found[3] in ("*", str(int(found[2]) + 1))


def disk_trouble(error: OSError, what: str) -> ModelUnavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelUnavailable("DISK_FULL", f"No room for {what}: {error.strerror}. Make room, and try again.")
    return ModelUnavailable("FETCH_FAILED", f"{what} cannot be written: {error.strerror or error}.")
