"""The pages for operators say what the code does: every setting with its default, every series with its labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestratord import config
from orchestratord.infra.prometheus import TABLE

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")
POOLS = (ROOT / "docs" / "pools.md").read_text("utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text("utf-8")
LINT = json.loads((ROOT / "ci" / "metrics.lint.json").read_text("utf-8"))
KINDS = {"state": "gauge"}  # our own word for a gauge that is read when somebody scrapes

SECTIONS: dict[type[config.Section], str] = {
    config.Settings: "At the top",
    config.ServerSettings: "server",
    config.LogSettings: "log",
    config.AuthSettings: "auth",
    config.RateLimitSettings: "rate_limit",
    config.JournalSettings: "journal",
    config.ArtifactSettings: "artifacts",
    config.SessionSettings: "sessions",
    config.BudgetSettings: "budgets",
    config.TariffSettings: "tariff",
    config.StreamSettings: "streams",
    config.RetentionSettings: "retention",
    config.ModelSettings: "models",
    config.FetchSettings: "fetch",
    config.BucketSettings: "s3",
    config.TrustSettings: "trust",
    config.TracingSettings: "tracing",
    config.PoolSettings: "pools",
    config.QueueSettings: "queue",
    config.PriorSettings: "prior",
    config.RestartSettings: "restarts",
    config.WatchdogSettings: "watchdogs",
    config.PinSettings: "pins",
    config.ReplicaSettings: "replicas of a pool",
    config.ProcessSettings: "process",
    config.MockSettings: "mock",
    config.ProfileSettings: "profiles",
}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row in a text, headings and rules included."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def settings_at(title: str) -> dict[str, str]:
    """Setting -> default, as the page tells them below a heading, or below its name at the start of a line."""
    _, found, rest = re.split(rf"(?m)^(#+ {re.escape(title)}$|`{re.escape(title)}`(?:$|:))", CONFIGURATION, maxsplit=1)
    assert found
    block = re.split(r"(?m)^(?:#|`\w+`(?:$|:))", rest, maxsplit=1)[0]
    return {cells[0].strip("`"): cells[1].strip("`") for cells in rows(block) if cells[0].startswith("`")}


def sections(kind: Any) -> set[type[config.Section]]:
    """Every section that can be reached from a type."""
    if isinstance(kind, type) and issubclass(kind, config.Section):
        return {kind}.union(*(sections(field.type) for field in msgspec.structs.fields(kind)))
    return set().union(*(sections(part) for part in getattr(kind, "__args__", ())))


def test_every_section_is_documented() -> None:
    """A section nobody described is noticed here."""
    assert sections(config.Settings) == set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_documented_with_its_default(section: type[config.Section]) -> None:
    """The page has exactly the settings there are; where a default is a plain value, it is the right one."""
    told = settings_at(SECTIONS[section])
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    assert told.keys() == fields.keys()
    for name, field in fields.items():
        if isinstance(field.default, bool | int | float):
            assert told[name] == json.dumps(field.default), name
        elif isinstance(field.default, str):
            assert told[name] == field.default, name
        elif field.required:
            assert told[name] in ("needed", ""), name


def test_the_built_in_profile_is_documented() -> None:
    """The last column of the profiles is `v1`."""
    _, _, block = CONFIGURATION.partition("### profiles")
    told = {cells[0].strip("`"): float(cells[2].strip("`")) for cells in rows(block) if cells[0].startswith("`")}
    assert told == msgspec.structs.asdict(config.V1)


def examples() -> list[tuple[str, str]]:
    return re.findall(r"(?ms)^```(toml|yaml)\n(.*?)^```$", CONFIGURATION)


def load(text: str, suffix: str, tmp_path: Path) -> config.Settings:
    path = tmp_path / f"orchestratord.{suffix}"
    path.write_text(text, "utf-8")
    return config.load(path, {})


@pytest.mark.parametrize(("suffix", "text"), examples(), ids=["smallest", "fuller"])
def test_examples_load(suffix: str, text: str, tmp_path: Path) -> None:
    """Both example files of the page are accepted as they stand."""
    settings = load(text, suffix, tmp_path)
    assert settings.pools


def test_the_example_of_two_models_on_one_card_loads(tmp_path: Path) -> None:
    """And two of them do not fit."""
    ((suffix, text),) = re.findall(r"(?ms)^```(toml)\n(.*?)^```$", POOLS)
    settings = load(text, suffix, tmp_path)
    assert {pool.load for pool in settings.pools} == {"on_demand"}
    needed = sum(replica.vram_bytes or 0 for pool in settings.pools for replica in pool.replicas)
    assert needed > settings.models.vram_bytes["0"]
    assert all(pool.replicas for pool in settings.pools)


def test_without_a_file_the_defaults_serve_and_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    """OD-18: zero configuration works on loopback; an unknown key names the one that was meant."""
    settings = config.load(None, {})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    suffix, text = examples()[1]
    with pytest.raises(config.ConfigError, match=r"'turn_max' in sessions.*'turns_max'"):
        load(text.replace("turns_max", "turn_max"), suffix, tmp_path)
    with pytest.raises(config.ConfigError, match="AUTH_TOKEN"):
        load(f"token: secret\n{text}", suffix, tmp_path)


def test_environment_variables_do_what_the_page_says(tmp_path: Path) -> None:
    """The page's own example of an override, and the token from a file."""
    token = tmp_path / "token"
    token.write_text("secret\n", "utf-8")
    settings = config.load(None, {"ORCHD_SERVER__PORT": "9000", "AUTH_TOKEN_FILE": str(token), "AUTH_OPTIONAL": "yes"})
    assert (settings.server.port, settings.token, settings.auth_optional) == (9000, "secret", True)


def test_the_lint_file_is_the_table_of_series() -> None:
    """`ci/metrics.lint.json` has every series with its type, labels and buckets, and nothing else."""
    table = {
        name: {"type": KINDS.get(series.kind, series.kind), "labels": list(series.labels)}
        | ({"buckets": list(series.buckets)} if series.buckets else {})
        for name, series in TABLE.items()
    }
    assert table == LINT


def test_every_series_is_documented() -> None:
    """`docs/metrics.md` has every series with its type and labels, in the order of the lint file."""
    told = {
        cells[0].strip("`"): {"type": cells[1], "labels": [label for label in cells[2].split(", ") if label]}
        for cells in rows(METRICS.partition("## Labels")[0])
        if cells[0].startswith("`")
    }
    assert told == {name: {"type": series["type"], "labels": series["labels"]} for name, series in LINT.items()}
    labels = {label for series in LINT.values() for label in series["labels"]}
    assert {label for label in labels if f"`{label}`" not in METRICS} <= {"policy"}


def test_the_fault_that_contributing_shows_can_be_made() -> None:
    """The file has the line that is to be changed, once, and the test that notices is there."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    shown = re.search(r"```diff\n # (\S+)\n-(.+)\n\+.+\n```\n\n.*`(test_\w+)`", page, re.DOTALL)
    assert shown is not None
    path, line, test = shown.groups()
    assert (ROOT / path).read_text().splitlines().count(line) == 1
    assert f"def {test}(" in "".join(file.read_text() for file in (ROOT / "tests/domain").glob("test_*.py"))
