"""Writes what the project runs on here, one `name==version` a line: for auditors of dependencies.

    python -m tests.installed FILE

Ourselves and what was installed from a path are left out: no public list knows of them.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path


def public(found: Distribution) -> bool:
    return found.read_text("direct_url.json") is None


def main(argv: list[str]) -> int:
    file = Path(argv[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = sorted({f"{one.metadata['Name']}=={one.version}" for one in distributions() if public(one)}, key=str.lower)
    file.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stdout.write(f"{len(lines)} distributions in {file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
