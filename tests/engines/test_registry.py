"""Drivers by name: ours, and those of packages that know us only by docs/adding-an-engine.md."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord import cli
from orchestratord.app import drivers
from orchestratord.config import ConfigError, Settings
from orchestratord.infra.engines import registry
from orchestratord.infra.engines.vllm import Vllm
from orchestratord.testing.live import LiveApp, mock_settings
from tests.engines import conformance
from tests.engines.support import CLOCK, run
from tests.http.support import submit, wait_for

GUIDE = Path(__file__).parents[2] / "docs" / "adding-an-engine.md"
URL = "http://127.0.0.1:9"


def settings(driver: str | None = None, engine: str = "vllm", **replica: Any) -> Settings:
    given = {"id": "r0", **({} if "process" in replica else {"url": URL}), **replica}
    pool = {"id": "home", "engine": engine, "model": "m", "replicas": [given], **({"driver": driver} if driver else {})}
    return msgspec.convert({"pools": [pool]}, Settings)


def test_ours_are_there() -> None:
    """One driver for every engine clients can ask for, and the mock."""
    assert {"llamacpp", "vllm", "tgi", "triton"} <= drivers_by_engine()
    assert registry.driver("mock")


def drivers_by_engine() -> set[str]:
    return {registry.driver(name)(URL, clock=CLOCK).engine for name in ("llamacpp", "vllm", "tgi", "triton")}


WRONG = [
    ({"driver": "vlm"}, "there is no engine driver 'vlm'. Installed: .*llamacpp.*vllm"),
    ({"options": {"slot": 4}}, "driver 'vllm' has no option 'slot'. It takes slots."),
    ({"engine": "llamacpp", "options": {"slots": 4}}, "driver 'llamacpp' has no option 'slots'. It takes none."),
    (
        {"engine": "tgi", "process": {"model_path": "m"}},
        "an engine of driver 'tgi' cannot be started from here .*llamacpp, triton, vllm.*`url`",
    ),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_what_a_driver_cannot_do(given: dict[str, Any], said: str) -> None:
    """The message names the pool and what there is instead."""
    with pytest.raises(ConfigError, match=f"pool 'home': {said}"):
        drivers(settings(**given))


def test_config_check_looks_at_drivers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`orchestratord config check` finds them too, before anything is started."""
    path = tmp_path / "c.yaml"
    path.write_bytes(msgspec.yaml.encode({"pools": [msgspec.to_builtins(settings(driver="vlm").pools[0])]}))
    assert cli.main(["config", "check", str(path)]) != 0
    assert "there is no engine driver 'vlm'" in capsys.readouterr().err


def test_a_process_is_known_to_its_driver() -> None:
    """vLLM does not say how many requests it takes: for a child the configuration knows. `options` win."""
    known = {"slots": 4, "ctx": 512}
    assert registry.options(Vllm, known, {}) == {"slots": 4}
    assert registry.options(Vllm, known, {"slots": 2}) == {"slots": 2}
    assert registry.options(registry.driver("llamacpp"), known, {}) == {}
    assert registry.options(registry.driver("triton"), known, {"model": "m"}) == {"slots": 4, "ctx": 512, "model": "m"}


# -- a package of somebody else's ----------------------------------------------------------------------------
@pytest.fixture
def foreign_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guide's examples as installed packages: one module and one entry point each."""
    found = re.findall(r"```(?:python|toml)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    names = []
    for module, entry in zip(found[::2], found[1::2], strict=True):
        group, name, value = re.search(r'entry-points\."([^"]+)"\]\n(\w+) = "([^"]+)"', entry).groups()  # type: ignore[union-attr]
        names.append(value.partition(":")[0])
        (tmp_path / f"{names[-1]}.py").write_text(module)
        info = tmp_path / f"{names[-1]}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {names[-1]}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    assert names == ["echo_engine", "backwards_engine"]
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("foreign_packages")
@pytest.mark.parametrize("claim", conformance.ALL, ids=lambda claim: claim.__name__)
def test_the_guides_example_conforms(claim: conformance.Claim) -> None:
    """The adapter in the guide keeps every promise of the port."""
    run(claim(registry.driver("echo")("echo://", clock=CLOCK)))


@pytest.mark.usefixtures("foreign_packages")
def test_the_guides_example_serves() -> None:
    """A pool names it as its driver, and a task runs on it, through the whole daemon."""
    pool = {
        "id": "home",
        "engine": "vllm",
        "driver": "echo",
        "model": "echo",
        "replicas": [{"id": "r0", "url": "http://echo", "options": {"slots": 3}}],
    }
    with LiveApp(mock_settings(pools=[pool])) as app, app.session() as session:
        task_id = submit(session, engine="vllm", prompt="one two three", max_tokens=2, ctx=64, seed=7)
        with session.events(task_id) as events:
            seen = list(events)
        assert "".join(event.data["t"] for event in seen if event.name == "token") == " one two"
        assert seen[-1].data["finish_reason"] == "length"
        engine = session.get("/v1/capabilities").json()["engines"][0]
        assert (engine["driver"], engine["engine_version"], engine["concurrency"]) == ("echo", "echo-1", 3)


def backwards(path: Path) -> list[dict[str, Any]]:
    """The guide's pool of an engine that is started. PYTHONPATH: its package is in a folder of the test only."""
    process = {"model_path": str(path / "words.bin"), "slots": 2, "ctx": 512, "env": {"PYTHONPATH": str(path)}}
    replica = {"id": "r0", "process": process}
    return [{"id": "home", "engine": "llamacpp", "driver": "backwards", "model": "any", "replicas": [replica]}]


@pytest.mark.usefixtures("foreign_packages")
def test_the_guides_second_example_is_started(tmp_path: Path) -> None:
    """A package that knows us only by its entry point brings a server: it is started, serves a task, and is replaced
    when it dies and gone when we are (OC-ADAPT)."""
    with LiveApp(mock_settings(pools=backwards(tmp_path)), manual=False) as app, app.session() as session:
        wait_for(lambda: session.get("/readyz").status_code == 200, "the pool is ready")
        for _ in range(2):
            task_id = submit(session, prompt="one two three", max_tokens=2, ctx=64)
            with session.events(task_id) as events:
                seen = list(events)
            assert "".join(event.data["t"] for event in seen if event.name == "token") == " three two"
            assert (seen[-1].name, seen[-1].data["finish_reason"]) == ("end", "length")
            replica = session.get("/v1/pools/home/health").json()["replicas"][0]
            assert replica["engine_version"] == "backwards-1"
            (pid,) = app.call(app.daemon.replicas.all_pids)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: app.call(app.daemon.replicas.all_pids) not in ([], [pid]), "another was started")
            wait_for(lambda: session.get("/readyz").status_code == 200, "the pool is ready again")
        (pid,) = app.call(app.daemon.replicas.all_pids)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("foreign_packages")
def test_what_cannot_be_started_names_all_that_can() -> None:
    """Drivers of other packages count, whichever way they are asked for."""
    with pytest.raises(ConfigError, match=r"cannot be started .*only backwards, llamacpp, triton, vllm"):
        drivers(settings(driver="echo", process={"model_path": "m"}))
    drivers(settings(driver="backwards", process={"model_path": "m"}))


@pytest.mark.usefixtures("foreign_packages")
def test_a_package_that_is_broken(tmp_path: Path) -> None:
    """It is named, and the daemon does not start."""
    (tmp_path / "echo_engine.py").write_text(textwrap.dedent("import nothing_like_this"))
    with pytest.raises(ConfigError, match=r"engine driver 'echo' .* cannot be loaded: No module named"):
        drivers(settings(driver="echo"))
