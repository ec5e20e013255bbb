"""What the daemon runs on, held against the holes we know of (`ci/advisories.yaml`), without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import installed

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("", "gpu", "s3", "testing", "trust")
IDENTIFIER = r"CVE-(199|20\d)\d-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}"
ADVISORIES = yaml.safe_load((ROOT / "ci" / "advisories.yaml").read_text("utf-8"))


def closure(name: str, extras: tuple[str, ...], seen: dict[str, str]) -> dict[str, str]:
    """name -> version of everything a distribution needs, itself included, as far as it is installed here."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return seen  # an extra that is not installed
    seen[canonicalize_name(name)] = found.version
    for line in found.requires or ():
        wanted = Requirement(line)
        needed = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras or ("",))
        if needed and canonicalize_name(wanted.name) not in seen:
            closure(wanted.name, tuple(wanted.extras), seen)
    return seen


RUNS_ON = closure("orchestratord", EXTRAS, {})


def holes(versions: dict[str, str]) -> Iterator[str]:
    for advisory in ADVISORIES:
        version = versions.get(advisory["package"])
        if version is not None and Version(version) < Version(advisory["fixed"]):
            what = f"fixed in {advisory['fixed']} ({advisory['what']})"
            yield f"{advisory['id']}: {advisory['package']} {version}, {what}"


def test_nothing_it_runs_on_has_a_known_hole() -> None:
    assert len(RUNS_ON) > 25, "the closure of the dependencies was not found"
    assert list(holes(RUNS_ON)) == []


def flaws(advisories: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the form of the list. Whether it is right, only a public service can say."""
    keys = [(advisory.get("package"), advisory.get("id")) for advisory in advisories]
    if keys != sorted(set(keys)):
        yield "not in order, or something twice"
    for advisory in advisories:
        if set(advisory) != {"package", "id", "fixed", "what"} or not all(
            isinstance(v, str) for v in advisory.values()
        ):
            yield f"{advisory}: package, id, fixed and what, each a text (a version like 3.10 needs quotes)"
        elif advisory["package"] != canonicalize_name(advisory["package"]):
            yield f"{advisory['package']}: write {canonicalize_name(advisory['package'])}"
        elif not re.fullmatch(IDENTIFIER, advisory["id"]):
            yield f"{advisory['id']}: no identifier of an advisory"
        elif not re.fullmatch(r"\d+(\.\d+)+", advisory["fixed"]):
            yield f"{advisory['id']}: {advisory['fixed']} is no released version"
        elif not advisory["what"].strip():
            yield f"{advisory['id']}: what is it?"


GOOD = {"package": "aiohttp", "id": "CVE-2024-23334", "fixed": "3.9.2", "what": "path traversal"}


def test_the_list_is_well_formed() -> None:
    assert list(flaws(ADVISORIES)) == []
    assert len(ADVISORIES) > 20


@pytest.mark.parametrize(
    "change",
    [
        {"package": "AioHTTP"},
        {"id": "CVE-24-1"},
        {"id": "GHSA-abcd"},
        {"fixed": 3.1},
        {"fixed": "3.9.2rc1"},
        {"fixed": "3.9.x"},
        {"what": " "},
        {"why": "a key too many"},
    ],
    ids=str,
)
def test_an_entry_of_another_form_is_noticed(change: dict[str, Any]) -> None:
    assert list(flaws([GOOD])) == []
    assert list(flaws([GOOD | change])) != []
    assert list(flaws([GOOD, GOOD])) != []


@pytest.mark.parametrize("advisory", ADVISORIES, ids=lambda advisory: advisory["id"])
def test_every_hole_would_be_noticed(advisory: dict[str, str]) -> None:
    """The last version with it is; the first without it is not."""
    package, fixed = advisory["package"], advisory["fixed"]
    assert any(advisory["id"] in line for line in holes({package: f"{fixed}.dev0"}))
    assert not any(advisory["id"] in line for line in holes({package: fixed}))


def test_the_list_for_auditors_has_exact_versions_and_not_ourselves(tmp_path: Path) -> None:
    assert installed.main([str(tmp_path / "list" / "installed.txt")]) == 0
    lines = (tmp_path / "list" / "installed.txt").read_text().splitlines()
    named = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}
    assert {name: version for name, version in RUNS_ON.items() if name != "orchestratord"}.items() <= named.items()
    assert "orchestratord" not in named
