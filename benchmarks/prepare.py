"""Installs the peers, each into an environment of its own under .tox/peers (or BENCH_PEERS).

    python -m benchmarks.prepare [nginx] [vllm-router] [litellm]

nginx is Debian's package, unpacked and not installed; one that is installed already is taken as it is. LiteLLM brings
about 100 packages. What cannot be had is left out: the benchmark then says that it is absent.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.peers import HOME, KNOWN, Known

PACKAGES = {"vllm-router": "vllm-router=={}", "litellm": "litellm[proxy]=={}"}


def install(known: Known) -> None:
    place = HOME / known.name
    place.mkdir(parents=True, exist_ok=True)
    if known.name in PACKAGES:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        package = PACKAGES[known.name].format(known.version)
        subprocess.run([str(place / "bin" / "python"), "-m", "pip", "install", "-q", package], check=True)
    else:
        subprocess.run(["apt-get", "download", known.name], cwd=place, check=True)
        newest = max(place.glob(f"{known.name}_*.deb"), key=lambda found: found.stat().st_mtime)
        subprocess.run(["dpkg", "-x", str(newest), str(place)], check=True)


def main(wanted: list[str]) -> int:
    failed = False
    for known in KNOWN:
        if wanted and known.name not in wanted:
            continue
        if known.program() is None:
            try:
                install(known)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{known.name}: {error}", file=sys.stderr)
        found = known.program()
        print(f"{known.name}: {found or 'not installed'}")
        failed |= found is None
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
