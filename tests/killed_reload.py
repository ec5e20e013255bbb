"""The daemon, built to kill itself at a named step of a reload: `python -m tests.killed_reload ARMED serve ...`.

ARMED is a file; while it holds the name of a step, the next reload that gets there is its last act (kill -9). Steps are
those of `STEPS` in `tests.reloads`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from orchestratord import cli
from orchestratord.domain.control import Control
from orchestratord.services.replicas import Replicas


def main() -> None:
    armed = Path(sys.argv[1])

    def step(name: str) -> None:
        if armed.exists() and armed.read_text("utf-8") == name:
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(kind: type, method: str, before: Any = None, after: Any = None) -> None:
        whole = getattr(kind, method)

        def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
            if before is not None:
                step(before(*arguments))
            result = whole(self, *arguments, **options)
            if after is not None:
                step(after(*arguments))
            return result

        setattr(kind, method, wrapped)

    dying(Control, "begin", after=lambda *_: "accepting")  # the fact may or may not be written
    dying(Control, "advance", after=lambda _, state: state)
    dying(Control, "commit", before=lambda *_: "uncommitted", after=lambda *_: "committing")
    dying(Control, "swap", before=lambda *_: "committed", after=lambda *_: "swapped")
    dying(Replicas, "retire", before=lambda *_: "retiring")
    dying(Control, "conclude", before=lambda *_: "concluding", after=lambda *_: "concluded")
    sys.argv = ["orchestratord", *sys.argv[2:]]
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
