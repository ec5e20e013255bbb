"""The rows of the reliability bar, each with its figure, in one table.

    python -m tests.reliability [ROW ...] [--full] [--write]

`ROW` is a row, a row in a size of one's own, or a group: `B2`, `B2=1000`, `E`. `--full` takes the sizes the
documentation shows (hours, and some of it as root); without it the table takes minutes. `--write` puts the lines into
`docs/reliability.md`; lines of rows that were not run stay as they are. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

from tests.reliability import admission, cancel, engines, exhaustion, security, shutdown, storage, streams, wire
from tests.reliability.rows import NOT_HERE, ROOT, ROWS, Skipped
from tests.reliability.stage import Others

PARTS = (admission, cancel, streams, engines, storage, exhaustion, wire, security, shutdown)
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- rows: python -m tests.reliability --full --write -->", "<!-- end of rows -->"
HEAD = "| row | what was done | times | seen | bar | |\n|---|---|---|---|---|---|\n"


def order(name: str) -> tuple[str, int]:
    return name[0], int(name[1:])


def write(lines: dict[str, str]) -> None:
    text = DOCUMENT.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    known = {match[1]: line for line in old.splitlines() if (match := re.match(r"\| ([A-K]\d+) \|", line))}
    known |= lines
    table = "\n".join(known[name] for name in sorted(known, key=order) if name in ROWS or name in NOT_HERE)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{HEAD}{table}\n\n{END}{after}", "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {' '.join(sorted({*ROWS, *NOT_HERE}, key=order))}, or letters")
    parser.add_argument("--full", action="store_true", help="the sizes the documentation shows")
    parser.add_argument("--write", action="store_true", help="put the lines into docs/reliability.md")
    arguments = parser.parse_args(argv)
    missed, lines = 0, {}
    wanted = {name: size for name, _, size in (one.partition("=") for one in arguments.rows)}
    for name in sorted({*ROWS, *NOT_HERE}, key=order):
        if wanted and name not in wanted and name[0] not in wanted:
            continue
        if name in NOT_HERE:
            line = f"| {name} | does not apply: {NOT_HERE[name]} | | | | |"
        else:
            asked = ROWS[name]
            size = int(wanted.get(name) or (asked.full if arguments.full else asked.quick))
            began, others = time.monotonic(), Others()
            try:
                seen = asked.run(size)
                count, figure, verdict = f"{seen.count:,}", seen.figure, "pass"
            except Skipped as why:
                count, figure, verdict = "0", f"left out: {why}", "-"
            except Exception as error:
                missed += 1
                count, figure, verdict = "", f"{type(error).__name__}: {str(error)[:600]}".replace("\n", " "), "MISSED"
            if asked.timed and verdict != "-":
                figure += f" ({others})"
            line = f"| {name} | {asked.what} | {count} | {figure.replace('|', '/')} | {asked.bar} | {verdict} |"
            sys.stderr.write(f"{name}: {time.monotonic() - began:.1f} s\n")
        lines[name] = line
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    if arguments.write:
        write(lines)
    assert PARTS
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
