"""The configuration clause by clause: order of precedence, every misspelling named, the schema, the user's own file."""

from __future__ import annotations

import gc
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from orchestratord import cli, config, contract
from orchestratord.cli.serve import config_file
from tests.http.daemon import ROOT

POOL = '[[pools]]\nid = "p"\nengine = "llamacpp"\nmodel = "file:m.gguf"\n'
REPLICA = f'{POOL}[[pools.replicas]]\nid = "r"\n'
MISSPELT = {
    "top": ("[sever]\nport = 1\n", "server"),
    "server": ("[server]\nprot = 1\n", "port"),
    "log": ("[log]\nformats = 'json'\n", "format"),
    "auth": ("[auth.rate_limit]\nbrust = 1\n", "burst"),
    "sessions": ("[sessions.budgets]\ntoken = 1\n", "tokens"),
    "fetch": ("[models.fetch]\nscheme = []\n", "schemes"),
    "pools": (f"{POOL}alias = []\n", "aliases"),
    "queue": (f"{POOL}queue = {{ capasity = 3 }}\n", "capacity"),
    "replicas": (f'{REPLICA}ulr = "http://h"\n', "url"),
    "process": (f"{REPLICA}process = {{ slot = 3 }}\n", "slots"),
    "profiles": ("[profiles.mine]\ntemprature = 1\n", "temperature"),
}


@pytest.mark.parametrize(("text", "meant"), MISSPELT.values(), ids=MISSPELT)
def test_a_misspelt_key_names_the_one_that_was_meant(
    text: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OD-18: at every depth, with the file in front; `check` and `serve` say the same and end with 78."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    said = []
    for words in (["config", "check", str(file)], ["serve", "-c", str(file)]):
        assert cli.main(words) == 78
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert str(file) in said[0]
    assert f"Did you mean {meant!r}" in said[0]


def _schema() -> dict[str, Any]:
    return config.json_schema()


def test_the_published_schema_judges_as_the_daemon_does(tmp_path: Path) -> None:
    """Editors get the same answers: examples are fine, misspelt keys and secrets are not."""
    validator = jsonschema.Draft202012Validator(_schema())
    example = tomllib.loads((ROOT / "deploy" / "config.toml").read_text())
    assert list(validator.iter_errors(example)) == []
    for text, _ in MISSPELT.values():
        assert list(validator.iter_errors(tomllib.loads(text))), text
    for secret in ({"token": "x"}, {"auth_optional": True}):
        assert list(validator.iter_errors(secret)), secret
        file = tmp_path / "c.yaml"
        file.write_text(json.dumps(secret))
        with pytest.raises(config.ConfigError, match="AUTH_"):
            config.load(file, {})


def test_the_environment_beats_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 1111, shutdown_grace_ms: 5}\n")
    settings = config.load(file, {"ORCHD_SERVER__PORT": "2222", "ORCHD_LOG__LEVEL": "error"})
    assert (settings.server.port, settings.server.shutdown_grace_ms, settings.log.level) == (2222, 5, "error")
    assert settings.server.host == config.Settings().server.host
    with pytest.raises(config.ConfigError, match="Did you mean ORCHD_SERVER"):
        config.load(None, {"ORCHD_SEVER__PORT": "1"})


NOT_FILES = {
    "no such date": ("yaml", "retention: 2024-13-45\n"),
    "a long number, YAML": ("yaml", f"server: {'9' * 5000}\n"),
    "a long number, TOML": ("toml", f"server = {'9' * 5000}\n"),
    "deep YAML": ("yaml", f"server: {'[' * 2000}{']' * 2000}\n"),
    "deep TOML": ("toml", f"server = {'[' * 2000}{']' * 2000}\n"),
    "no text": ("toml", "\udcff"),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Where a parser is at the limit of recursion, what the collector frees could not even say so."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("kind", "text"), NOT_FILES.values(), ids=NOT_FILES)
def test_a_file_that_cannot_be_parsed_is_told_and_not_thrown(
    kind: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OD-18: whatever the parsers make of a file, it ends with 78 and the file's name."""
    file = tmp_path / f"c.{kind}"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for words in (["config", "check", str(file)], ["config", "show", str(file)], ["serve", "-c", str(file)]):
        assert cli.main(words) == 78
        assert f"{file} cannot be parsed" in capsys.readouterr().err


def test_a_file_of_comments_says_nothing(tmp_path: Path) -> None:
    for kind in ("yaml", "toml"):
        file = tmp_path / f"c.{kind}"
        file.write_text("# server: {port: 1}\n")
        assert config.load(file, {}) == config.Settings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("ORCHD_TOKEN", "AUTH_TOKEN"), ("ORCHD_AUTH_OPTIONAL", "AUTH_OPTIONAL"), ("ORCHD_TOKEN__X", "AUTH_TOKEN")],
)
def test_a_token_under_another_name_is_not_passed_over(variable: str, meant: str) -> None:
    """OD-18: whoever sets it believes that the daemon is closed."""
    with pytest.raises(config.ConfigError, match=f"{variable} .* {meant}") as caught:
        config.load(None, {variable: "canary-of-a-token"})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "meant"), [("on", True), ("TRUE", True), ("yes", True), ("", False), ("off", False), ("0", False)]
)
def test_auth_optional_is_a_yes_or_a_no(word: str, meant: bool) -> None:
    """AUTH-1004: `on` was taken for no."""
    assert config.load(None, {"AUTH_TOKEN": "t" * 32, "AUTH_OPTIONAL": word}).auth_optional is meant


@pytest.mark.parametrize("word", ["ture", "enabled", "2"])
def test_auth_optional_that_is_neither_is_a_mistake(word: str) -> None:
    with pytest.raises(config.ConfigError, match="AUTH_OPTIONAL is true or false"):
        config.load(None, {"AUTH_TOKEN": "t" * 32, "AUTH_OPTIONAL": word})


@pytest.mark.parametrize(("per_s", "fits"), [(0, True), (1e-6, True), (9e-7, False), (1e-300, False)])
def test_a_rate_is_one_that_can_be_waited_for(tmp_path: Path, per_s: float, fits: bool) -> None:
    """ORCH-3004: at 1e-300 a second the wait was no number the contract has."""
    file = tmp_path / "c.toml"
    file.write_text(f"[auth.rate_limit]\nper_s = {per_s!r}\n")
    if fits:
        assert config.load(file, {}).auth.rate_limit.per_s == per_s
    else:
        with pytest.raises(config.ConfigError, match="per_s is 0, for no limit, or at least"):
            config.load(file, {})


@pytest.mark.parametrize(("replicas", "fits"), [(16, True), (17, False)])
def test_a_pool_has_no_more_slots_than_can_be_told(tmp_path: Path, replicas: int, fits: bool) -> None:
    """OD-11: of more the daemon's own answers would not fit their contract."""
    file = tmp_path / "c.yaml"
    made = ", ".join(f"{{id: r{i}, mock: {{slots: 4096}}}}" for i in range(replicas))
    file.write_text(f"allow_mock: true\npools: [{{id: home, engine: vllm, model: 'hf:a/b', replicas: [{made}]}}]\n")
    if fits:
        assert len(config.load(file, {}).pools[0].replicas) == replicas
    else:
        with pytest.raises(config.ConfigError, match="69632 slots in all; 65536 is the most"):
            config.load(file, {})


def test_a_number_of_the_environment_that_is_too_long_is_text() -> None:
    assert config.load(None, {"ORCHD_DATA_DIR": "9" * 5000}).data_dir == "9" * 5000


def test_a_home_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `su`, which keeps HOME: the daemon has no file, and starts."""
    monkeypatch.delenv("ORCHD_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "x" * 300)  # any error of looking will do, and root may look anywhere
    assert config_file(None) is None


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one given, ORCHD_CONFIG, the user's own by XDG, none: in this order."""
    monkeypatch.delenv("ORCHD_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_file(None) is None
    mine = tmp_path / "orchestratord" / "config.toml"
    mine.parent.mkdir()
    mine.write_text("")
    assert config_file(None) == mine
    monkeypatch.setenv("ORCHD_CONFIG", "/named")
    assert config_file(None) == Path("/named")
    assert config_file(Path("given")) == Path("given")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert config.Settings().data_path == tmp_path / "state" / "orchestratord"


def test_ids_that_become_labels_are_bounded() -> None:
    pool = {"id": "p", "engine": "tgi", "model": "m"}
    many = [{**pool, "id": f"p{n}"} for n in range(config.POOLS_MAX + 1)]
    assert len(msgspec.convert({"pools": many[:-1]}, config.Settings).pools) == config.POOLS_MAX
    with pytest.raises(msgspec.ValidationError, match="pools"):
        msgspec.convert({"pools": many}, config.Settings)
    replicas = [{"id": f"r{n}", "url": "http://h:1"} for n in range(config.REPLICAS_MAX + 1)]
    with pytest.raises(msgspec.ValidationError, match="1025 different ids"):
        msgspec.convert({"pools": [{**pool, "replicas": replicas}]}, config.Settings)


REPLICAS = f"{POOL}replicas = "
USELESS = {
    "a name with a newline": (POOL.replace('"p"', '"p\\n"'), "id"),
    "no model": (POOL.replace('"file:m.gguf"', '""'), "model"),
    "a model in two words": (POOL.replace("m.gguf", "m 1.gguf"), "model"),
    "an alias that is too long": (f'{POOL}aliases = ["{"a" * 513}"]\n', "aliases"),
    "devices that the contract cannot tell": (
        f'{REPLICAS}[{{ id = "r", url = "http://h", device_mask = "0, 1" }}]',
        "mask",
    ),
    "a URL with a newline": (f'{REPLICAS}[{{ id = "r", url = "http://h:1\\n" }}]', "url"),
    "a URL with a query": (f'{REPLICAS}[{{ id = "r", url = "http://h:1?x" }}]', "url"),
    "a port that is none": (f'{REPLICAS}[{{ id = "r", url = "http://h:99999" }}]', "url"),
    "a port that is a word": (f'{REPLICAS}[{{ id = "r", url = "http://h:http" }}]', "url"),
    "no host": (f'{REPLICAS}[{{ id = "r", url = "http://:1" }}]', "url"),
    "half an address": (f'{REPLICAS}[{{ id = "r", url = "http://[::1" }}]', "url"),
    "a host with a port": ('[auth]\nallowed_hosts = ["llm.example.net:8080"]\n', "allowed_hosts"),
    "a host in brackets": ('[auth]\nallowed_hosts = ["[::1]"]\n', "allowed_hosts"),
    "an origin without its scheme": ('[auth]\nallowed_origins = ["ui.example.net"]\n', "allowed_origins"),
    "an origin with a path": ('[auth]\nallowed_origins = ["https://ui.example.net/"]\n', "allowed_origins"),
    "endless cost": ("[sessions.tariff]\nper_task = inf\n", "per_task"),
    "an endless rate": ("[auth.rate_limit]\nper_s = inf\n", "per_s"),
    "an endless prior": (f"{POOL}prior = {{ ms_per_unit = inf }}\n", "ms_per_unit"),
    "a watchdog of more than a week": (f"{POOL}watchdogs = {{ idle_ms = 604800001 }}\n", "idle_ms"),
    "more than JSON can hold": ("[retention]\ntasks = 9007199254740992\n", "tasks"),
    "a knob that no task could set": ("[profiles.x]\ntemperature = 2.5\n", "temperature"),
}


@pytest.mark.parametrize(("text", "names"), USELESS.values(), ids=USELESS)
def test_what_could_never_work_is_told_at_the_start(text: str, names: str, tmp_path: Path) -> None:
    """OD-18: a value no request can match, no engine can take or no answer can show."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError, match=names):
        config.load(file, {})


def test_hosts_and_origins_as_they_come_in_headers(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[auth]\nallowed_hosts = ["GPU-Box.lan", "10.0.0.7", "fd00::1"]\n'
        'allowed_origins = ["https://ui.example.net", "http://[::1]:3000", "null"]\n'
    )
    assert len(config.load(file, {}).auth.allowed_hosts) == 3


@pytest.mark.parametrize(
    ("setting", "schema"),
    [
        (("PoolSettings", "id"), "Name"),
        (("PoolSettings", "model"), "ModelRef"),
        (("ReplicaSettings", "device_mask"), "DeviceMask"),
        (("PinSettings", "model_digest"), "Digest"),
    ],
)
@pytest.mark.parametrize("text", ["a", "a,b", "a b", "a\n", "a" * 129, "a" * 513, "", f"sha256:{'0' * 64}", "a\u00a0"])
def test_what_answers_show_has_the_form_of_the_contract(setting: tuple[str, str], schema: str, text: str) -> None:
    """Whatever the configuration takes fits into an answer."""
    section, name = setting
    ours = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{section}/properties/{name}", **_schema_definitions()})
    theirs = contract.compile_schema(contract.load("control")["components"]["schemas"][schema])
    assert theirs.is_valid(text) or not ours.is_valid(text)


def _schema_definitions() -> dict[str, Any]:
    return {"$defs": config.json_schema()["$defs"]}


@pytest.mark.parametrize("knob", config.ProfileSettings.__struct_fields__)
def test_profiles_set_what_tasks_may_set(knob: str) -> None:
    """The same bounds as in `sampling`."""
    found = config.json_schema()["$defs"]["ProfileSettings"]["properties"][knob]
    (ours,) = [kind for kind in found["anyOf"] if kind["type"] != "null"]
    theirs = dict(contract.load("data")["components"]["schemas"]["Sampling"]["properties"][knob])
    if theirs.pop("exclusiveMinimum", False):
        theirs["exclusiveMinimum"] = theirs.pop("minimum")
    bounds = ("minimum", "exclusiveMinimum", "maximum")
    assert {b: ours.get(b) for b in bounds} == {b: theirs.get(b) for b in bounds}


def test_a_data_directory_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert config.load(None, {"ORCHD_DATA_DIR": "~/data"}).data_path == Path("/home/somebody/data")
