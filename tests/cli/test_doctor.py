"""`orchestratord doctor` finds what is wrong and says what to do."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from orchestratord import cli, config
from orchestratord.cli import doctor
from orchestratord.cli.doctor import Finding, examine
from orchestratord.domain.url import authority
from orchestratord.testing.live import LiveApp, mock_settings
from tests.http.daemon import free_port


def look(tmp_path: Path, text: str = "") -> dict[str, Finding]:
    file = tmp_path / "c.toml"
    file.write_text(f'data_dir = "{tmp_path / "data"}"\n{text}')
    return {finding.check: finding for finding in examine(file)}


def server(port: int) -> str:
    return f"server = {{ port = {port} }}\n"


def test_a_machine_that_has_everything(tmp_path: Path) -> None:
    """Nothing fails where nothing is wrong, and everything was looked at."""
    found = look(tmp_path, server(free_port()))
    assert [f for f in found.values() if f.level == "fail"] == []
    wanted = {"configuration", "python", "sqlite", "data", "address", "token", "open files", "clock", "drivers", "gpu"}
    assert wanted <= found.keys()
    assert all(f.fix for f in found.values() if f.level != "ok")


def test_a_port_in_use_and_a_daemon_that_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.settimeout(0)
        found = look(tmp_path, server(taken.getsockname()[1]))
    assert (found["address"].level, "--port" in found["address"].fix) == ("fail", True)
    with LiveApp(mock_settings(), manual=False) as app:
        found = look(tmp_path, server(int(app.url.rpartition(":")[2])))
    assert (found["address"].level, "a daemon is running" in found["address"].seen) == ("ok", True)


def test_a_port_in_use_by_what_speaks_no_http(tmp_path: Path) -> None:
    """Whatever answers there, and however, it is one finding."""

    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=greet, args=(taken,))
        thread.start()
        found = look(tmp_path, server(taken.getsockname()[1]))
        thread.join()
    assert found["address"].level == "fail"
    assert "clock" in found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_engines_that_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """At any address an engine may have, with a password, and at the port that `http:` means."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    pool = '[[pools]]\nid = "p"\nengine = "tgi"\nmodel = "m"\nreplicas = [{{ id = "r", url = "{}" }}]\n'
    with socket.create_server((host, 0), family=family) as engine:
        port = engine.getsockname()[1]
        found = look(tmp_path, pool.format(f"http://u:secret@{authority(host, port)}"))["engine"]
        assert (found.level, found.seen) == ("ok", f"p/r: http://{authority(host, port)} answers")
        monkeypatch.setattr(doctor, "PORTS", {"http": port})
        name = authority(host, port).removesuffix(f":{port}")
        assert look(tmp_path, pool.format(f"http://{name}"))["engine"].level == "ok"


def test_a_daemon_at_an_address_of_version_6(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(mock_settings(), server=config.ServerSettings(host="::1", port=0))
    with LiveApp(settings, manual=False) as app:
        port = int(app.url.rpartition(":")[2])
        found = look(tmp_path, f'server = {{ host = "::1", port = {port} }}\n')
        listening = next(
            line for line in map(json.loads, app.log.getvalue().splitlines()) if line["event"] == "listening"
        )
    assert (found["address"].level, found["address"].seen) == ("ok", f"a daemon is running at [::1]:{port}")
    assert listening["url"] == f"http://[::1]:{port}"


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    found = look(tmp_path, server(free_port()))
    assert (found["data"].level, found["data"].seen) == ("fail", f"{tmp_path / 'data'} is not a directory")


def test_a_wrong_configuration_is_one_finding_of_many(tmp_path: Path) -> None:
    found = look(tmp_path, "[sever]\n")
    assert (found["configuration"].level, "Did you mean" in found["configuration"].seen) == ("fail", True)
    assert "clock" in found


def test_engines_and_models_that_are_not_there(tmp_path: Path) -> None:
    replicas = f"""
[[pools]]
id = "a"
engine = "llamacpp"
model = "file:/m.gguf"
replicas = [
  {{ id = "r0", url = "http://127.0.0.1:{free_port()}" }},
  {{ id = "r1", device_mask = "0", process = {{ model_path = "{tmp_path}/m.gguf", binary = "/no/such/server" }} }},
]
"""
    file = tmp_path / "c.toml"
    file.write_text(replicas)
    found = list(examine(file))
    engines = [f for f in found if f.check == "engine"]
    assert [(f.level, f.seen.partition(":")[0]) for f in engines] == [("warn", "a/r0"), ("fail", "a/r1")]
    assert [f.level for f in found if f.check == "model"] == ["fail"]
    assert [f.level for f in found if f.check == "gpu"] == [
        "fail" if not list(Path("/dev").glob("nvidia[0-9]")) else "ok"
    ]


def test_an_open_data_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chmod(tmp_path / "data", 0o755)
    found = look(tmp_path, server(free_port()))
    assert (found["data"].level, found["data"].fix) == ("warn", f"chmod 700 {tmp_path / 'data'}")


def test_old_and_new_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, level in (((3, 51, 2), "warn"), ((3, 51, 3), "ok")):
        monkeypatch.setattr(doctor.sqlite3, "sqlite_version_info", version)
        assert look(tmp_path)["sqlite"].level == level


def test_the_exit_code_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("nonsense")
    assert cli.main(["doctor", "-c", str(file), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found[0]["level"] == "fail"
    assert cli.main(["doctor", "-c", str(file)]) == 1
    assert "FAIL  configuration" in capsys.readouterr().out
