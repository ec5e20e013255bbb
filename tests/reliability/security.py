"""H: security."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import statistics
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from urllib.parse import quote

import psutil

from orchestratord import middleware
from orchestratord.wire.errors import HttpError
from tests.http.daemon import DaemonProcess
from tests.reliability.clients import Got, Request, crowd
from tests.reliability.exhaustion import bodies
from tests.reliability.rows import Seen, not_here, passing, row, tests
from tests.reliability.stage import daemon

tests(
    "H1",
    "every operation, undocumented paths and methods x 16 bad tokens",
    "401 before all else; open only what is listed",
    "http/test_auth.py",
)
tests(
    "H3",
    "a canary through logs, metrics, answers, journal, configuration, engines",
    "hits 0",
    "services/test_telemetry.py::test_no_secret_reaches_the_log_the_metrics_or_an_answer",
    "http/test_auth.py::test_the_token_is_nowhere_in_the_log",
    "ports/test_sqlite_journal.py::test_a_prompt_is_nowhere_once_its_task_has_ended",
    "engines/test_conformance.py::test_keeps",
)
tests(
    "H4",
    "token files: empty, unreadable, with a line end",
    "refused, or trimmed; read once: a new token needs a restart",
    "http/test_auth.py::test_a_token_file_is_read_without_its_line_end",
    "http/test_auth.py::test_a_token_that_is_none_is_a_mistake",
)
tests(
    "H5",
    "references and redirects that lead inside",
    "canary hits 0",
    "fetch/test_policy.py",
    "domain/test_modelref.py",
)
SECRET = "canary-outside-the-root"
PIECES = ("..", "../", "..%2f", "%2e%2e/", "%252e", "\\", "sha256", ":", "-", "\0", "%00", "\u2028", "a" * 64, "A" * 64)
PIECES += (
    "f" * 63,
    "0" * 65,
    "/",
    "//",
    "CON",
    "NUL",
    "journal.db",
    "outside",
    "data",
    "artifacts",
    ".",
    "~",
    "%c0%ae",
)


def _ids(size: int) -> Iterator[Request]:
    """Artifact ids put together from what has led out of somebody's root before."""
    draw = Random(6)
    for number in range(size):
        raw = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 6)))
        yield "GET", f"/v1/artifacts/{raw if number % 2 and raw.isascii() and raw.isprintable() else quote(raw)}", None


@row("H6", "artifact ids put together from what leads out of a root, links", "reads outside the root 0", 5_000, 100_000)
def traversal(size: int) -> Seen:
    passing("ports/test_artifact_store.py")
    statuses: dict[int, int] = {}

    def see(_: Request, got: Got) -> None:
        statuses[got.status] = statuses.get(got.status, 0) + 1
        assert SECRET.encode() not in got.body, got

    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with daemon(data=data) as process, process.session() as session:
            stored = session.post("/v1/artifacts", json={"kind": "other", "content": {}}).json()["id"]
            for place in (Path(folder), data, data / "artifacts"):
                for name in ("outside", "CON", "a" * 64):
                    with contextlib.suppress(FileExistsError):
                        (place / name).write_text(SECRET)
            crowd(process.url, _ids(size), see)
            assert session.get(f"/v1/artifacts/{stored}").status_code == 200
    assert set(statuses) <= {400, 404, 414}, statuses
    return Seen(size, ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items())) + "; read 0")


tests(
    "H7",
    "correlation ids of every kind",
    "kept or replaced, never echoed raw",
    "http/test_errors.py::test_a_good_correlation_id_is_echoed_on_errors",
    "http/test_errors.py::test_a_bad_correlation_id_is_replaced_never_refused",
    "http/test_raw.py::test_what_is_no_good_request_is_refused",
)
tests(
    "H8",
    "line ends, escapes and quotes in client text",
    "one record, one line",
    "services/test_telemetry.py::test_no_client_text_breaks_a_line",
)


def _packed() -> Iterator[Request]:
    """A gigabyte of zeros in a megabyte, and an archive that wants to be elsewhere: as content of artifacts."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../outside", bytes(1 << 26))
    for packed in (gzip.compress(bytes(1 << 29), 9), archive.getvalue()):
        yield "POST", "/v1/artifacts", {"kind": "other", "content": {"archive": base64.b64encode(packed).decode()}}


def _memory(process: DaemonProcess) -> float:
    return psutil.Process(process.process.pid).memory_info().rss / (1 << 20)


def _sent(process: DaemonProcess, asked: list[Request], rounds: int) -> set[int]:
    """The statuses of all of them, sent one after another."""
    statuses = set[int]()
    for _ in range(rounds):
        crowd(process.url, asked, lambda _, got: statuses.add(got.status), clients=1)
    return statuses


@row(
    "H9",
    "gzip and zip bombs as coded bodies and as content (rounds); downloads larger than declared",
    "415, or kept as the text it is, nothing unpacked; memory <= 2 MiB (twice a body's limit) more; downloads cut off",
    5,
    50,
)
def bombs(size: int) -> Seen:
    passing("fetch/test_https.py")
    zeros, asked = gzip.compress(bytes(1 << 26), 9), list(_packed())
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        with daemon(data=data) as process, process.session() as session:
            small = ("POST", "/v1/artifacts", {"kind": "other", "content": {"text": "x" * 700_000}})
            _sent(process, [small], 6 * size)  # what as many bodies of that size take that are no bombs
            before = _memory(process)
            for _ in range(size):
                for encoding in ("gzip", "deflate", "br", "zstd"):
                    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                    assert session.post("/v1/artifacts", data=zeros, headers=headers).status_code == 415
            assert _sent(process, asked, size) == {201}
            grown = _memory(process) - before
            assert not [path for path in Path(folder).rglob("*") if path.name == "outside"]
    assert grown <= 2, f"{grown:+.1f} MiB"
    return Seen(6 * size, f"coded ones 415, packed ones kept as text; {grown:+.1f} MiB")


tests(
    "H10",
    "content that is not its digest, 50 of one at once",
    "refused; stored once",
    "fetch/test_https.py::test_a_wrong_digest_fails_closed",
    "fetch/test_https.py::test_many_who_ask_for_one_reference_share_one_download",
    "ports/test_artifact_store.py::test_the_same_artifact_put_by_many_at_once_is_stored_once",
)
not_here("H11", "artifacts are served as JSON documents only, never as files of their own type")
tests(
    "H12",
    "foreign Host and Origin",
    "403 every time; no CORS header",
    "http/test_auth.py::test_a_foreign_host_is_403",
    "http/test_auth.py::test_a_foreign_origin_is_403",
)
not_here("H13", "one caller owns everything; task and session ids are the client's, artifact ids are digests")
not_here("H14", "there is no shared store; the journal is JSON in bound parameters (see H16)")
tests(
    "H15",
    "bind, modes, what is open",
    "loopback; 0700, 0600; docs behind the token",
    "http/test_auth.py::test_a_reachable_address_needs_a_token",
    "ports/test_sqlite_journal.py::test_the_directory_and_the_files_are_private",
    "ports/test_artifact_store.py::test_files_are_private_and_where_the_id_says",
)
tests(
    "H16",
    "static rules (ruff's S): SQL from text, shells, pickles, weak hashes",
    "findings 0",
    "contract/test_security_lint.py",
)


@row("H2", "comparisons of a token, wrong in its first and in its last byte", "Welch t < 4.5", 20_000, 100_000)
def timing(size: int) -> Seen:
    secret = "s" * 32
    guard = middleware.Guard(middleware.Access(token=secret))
    wrong = {"first": b"x" + secret[1:].encode(), "last": secret[:-1].encode() + b"x"}
    took: dict[str, list[int]] = {"first": [], "last": []}
    draw = Random(2)

    for _ in range(size):
        place = draw.choice(("first", "last"))
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + wrong[place])]
        scope = {"type": "http", "headers": headers, "path": "/"}
        began = time.perf_counter_ns()
        with contextlib.suppress(HttpError):
            guard.admit(scope, *middleware.gather(headers))
        took[place].append(time.perf_counter_ns() - began)
    cut = sorted(took["first"] + took["last"])[int(size * 0.9)]  # what the machine adds now and then
    a, b = ([t for t in took[place] if t <= cut] for place in ("first", "last"))
    t = abs(statistics.mean(a) - statistics.mean(b)) / (
        (statistics.variance(a) / len(a) + statistics.variance(b) / len(b)) ** 0.5
    )
    assert t < 4.5, t
    return Seen(size, f"t = {t:.2f}")


@row(
    "H17",
    "the heaviest JSON there is in a mebibyte, 23 kinds (rounds)",
    "memory <= 2 MiB (twice a body's limit) more than by bodies of that size that are no bombs",
    2,
    20,
)
def heavy_json(size: int) -> Seen:
    asked: list[Request] = [("POST", path, data) for path, data in bodies(1 << 20).values()]
    with daemon(journal=True) as process:
        idle = _memory(process)
        # As in H9: what as many bodies of that size take that are no bombs.
        honest: list[Request] = [("POST", "/v1/artifacts", {"kind": "other", "content": {"text": "x" * 1_000_000}})]
        honest.append(("POST", *bodies(1 << 20)["a long prompt"]))
        assert 500 not in _sent(process, honest, 10 * size)
        before = _memory(process)
        assert 500 not in _sent(process, asked, 1)
        once = _memory(process) - before
        assert 500 not in _sent(process, asked, size)
        again = _memory(process) - before
    figure = f"{before - idle:+.1f} MiB by {20 * size:,} plain bodies of a mebibyte, "
    figure += f"{once:+.1f} by each of these once, {again:+.1f} by {size * len(asked):,} more"
    assert again <= 2, figure
    return Seen(size * len(asked), figure)
