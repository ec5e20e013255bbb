"""Clients made from the contracts by others' generators: `python -m tests.clients --bin DIR` (tox run -e generated).

DIR has openapi-python-client, mypy and a Python with what generated code needs. The Python client of both contracts is
type-checked, and that of the data plane does the main job against a live daemon; TypeScript types of both compile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestratord import contract
from orchestratord.testing.live import LiveApp, mock_settings

JOB = Path(__file__).with_name("clients_job.py")
# client.py is the generator's, the same for every contract, and passes `*args: object` on; mypy 2 minds.
MYPY = """[mypy]
ignore_missing_imports = true
[mypy-data.client,control.client]
disable_error_code = arg-type
"""
TYPESCRIPT = ("-p", "typescript@5.9", "-p", "openapi-typescript@7.13.0")


def run(folder: Path, *command: str | Path) -> None:
    """Raises CalledProcessError when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([str(part) for part in command], cwd=folder, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--no-typescript", action="store_true", help="without npx")
    arguments = parser.parse_args()
    tools: Path = arguments.bin
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "mypy.ini").write_text(MYPY, "utf-8")
        for name in contract.CONTRACTS:
            (folder / f"{name}.json").write_text(json.dumps(contract.load(name)), "utf-8")
            options = ("--path", f"{name}.json", "--output-path", name, "--meta", "none", "--overwrite")
            run(folder, tools / "openapi-python-client", "generate", *options)
            run(folder, tools / "mypy", "--config-file", "mypy.ini", name)
        with LiveApp(mock_settings(), manual=False) as app:
            run(folder, tools / "python", "-P", JOB, app.url)
        if not arguments.no_typescript:
            for name in contract.CONTRACTS:
                run(folder, "npx", "--yes", *TYPESCRIPT, "openapi-typescript", f"{name}.json", "-o", f"{name}.ts")
            run(folder, "npx", "--yes", *TYPESCRIPT, "tsc", "--noEmit", "--strict", "data.ts", "control.ts")
    sys.stdout.write("clients: Python and TypeScript are as the contracts say\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
