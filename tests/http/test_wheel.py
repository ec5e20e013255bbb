"""The wheel is complete: installed into an empty folder it serves, with its contracts and its documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from orchestratord import contract
from tests.http.daemon import ROOT, DaemonProcess, write_config
from tests.http.support import submit

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("orchestratord-*.whl")
    return built


def test_the_wheel_has_what_it_needs_and_no_more(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"orchestratord"}
    for name in ("data", "control", "components"):
        assert f"orchestratord/_contracts/{name}.yaml" in names
    assert not [name for name in names if "test_" in name or name.endswith(".pyc")]


def test_the_installed_wheel_serves(wheel: Path, tmp_path: Path) -> None:
    """From a folder where no checkout is in sight."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run(*PIP, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    config = write_config(tmp_path, data=None)
    with DaemonProcess(config, cwd=empty, env={"PYTHONPATH": str(site)}) as daemon, daemon.up().session() as session:
        served = session.get("/openapi/data.json").json()
        assert served == contract.load("data")
        assert session.get("/openapi/control.json").json() == contract.load("control")
        page = session.get("/docs").text
        for operation in contract.operations():
            assert operation.path in page
        assert (
            "://" not in page.replace("http://www.w3.org", "").replace("https://spec.openapis.org", "")
            or "<script src" not in page
        )
        with session.events(submit(session)) as events:
            assert list(events)[-1].name == "end"
    assert list(empty.iterdir()) == []
