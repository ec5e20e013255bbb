"""What the daemon costs.

`python -m benchmarks` is the quick form: beside its floors, half a minute, held to the stored ratios.
`python -m benchmarks --peers` is the full one: full sizes, beside other gateways, held to the goals.

Exit codes: 0 all well; 1 too slow; 2 a peer lost a token, or did not work at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import full, quick
from benchmarks.peers import KNOWN

ROUNDS = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="the quick form (the default)")
    form.add_argument("--peers", action="store_true", help="the full form: about four minutes a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"the more, the less noise (default {ROUNDS})")
    parser.add_argument("--store", action="store_true", help="quick: write the ratios found to ratios.json")
    names = [known.name for known in KNOWN]
    parser.add_argument("--only", nargs="*", metavar="PEER", default=[], help=f"full: of {', '.join(names)}")
    parser.add_argument(
        "--scenarios", nargs="*", metavar="NAME", default=[], help=f"full: of {' '.join(full.SCENARIOS)}"
    )
    parser.add_argument("--no-besides", action="store_true", help="full: no start-up, recovery, cancels and growth")
    parser.add_argument("--out", type=Path, help="full: folder for results.md and results.json")
    arguments = parser.parse_args()
    if not Path("/proc/self/task").exists():
        print("skipped: CPU and memory of other processes are read from Linux's /proc")
        return 0
    rounds = max(1, arguments.rounds)
    if arguments.peers:
        return full.main(rounds, arguments.only, arguments.scenarios, not arguments.no_besides, arguments.out)
    return quick.main(rounds, arguments.store)


if __name__ == "__main__":
    sys.exit(main())
