"""A process that is killed while it fetches: what it had written is gone on with."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.fetch.site import MODEL, Asked, Reply, digest, serving
from tests.fetch.support import Lab

BIG = MODEL * 6
SENT = 10_000_000
PATIENCE_S = 30.0

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.fetch.support import Lab

folder, netloc, root = sys.argv[1:]
lab = Lab(Path(folder) / "child")
lab.cache = type(lab.cache)(Path(folder) / "cache")
lab.policy = replace(lab.policy, private=frozenset({netloc}), ca_roots=(root,))
lab.fetch(f"https://{netloc}/m.gguf")
"""


def test_what_a_killed_process_had_written_is_gone_on_with(tmp_path: Path) -> None:
    """ORCH-3090: nothing of it was shown to anybody, and none of it is fetched twice."""
    hold = threading.Event()
    with serving() as site:

        def half(asked: Asked) -> Reply:
            reply = site.file(asked, BIG)
            return Reply(200, reply.body, reply.headers, pause=SENT, hold=hold) if len(site.asked) == 1 else reply

        site.routes["/m.gguf"] = half
        lab = Lab(tmp_path, site)
        (tmp_path / "child").mkdir()
        (root,) = lab.policy.ca_roots
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), f"127.0.0.1:{site.port}", root])
        try:
            written = _wait_for_bytes(tmp_path / "cache" / "incoming", child)
        finally:
            child.kill()
            child.wait()
            hold.set()
        assert [path.parent.name for path in lab.kept] == ["incoming", "incoming"]
        path = lab.fetch(site.at("/m.gguf"))
        assert lab.kept == [path]
        assert f"sha256:{path.name}" == digest(BIG)
        start = int(site.asked[1].headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert written <= start <= SENT


def _wait_for_bytes(folder: Path, child: subprocess.Popen[bytes]) -> int:
    ends = time.monotonic() + PATIENCE_S
    while True:
        assert child.poll() is None, "the child is over already"
        assert time.monotonic() < ends, "nothing was written"
        sizes = [path.stat().st_size for path in folder.glob("*.part")] if folder.is_dir() else []
        if sizes and sizes[0]:
            return sizes[0]
        threading.Event().wait(0.01)
