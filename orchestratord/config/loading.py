"""One validated settings object: built-in defaults, then one TOML or YAML file, then the environment.

Environment: `ORCHD_SECTION__KEY` overrides any scalar, `AUTH_TOKEN` or `AUTH_TOKEN_FILE` gives the token,
`AUTH_OPTIONAL=true` lets local peers in without it. Services get plain values from here, never this object.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from orchestratord.config.explain import explain
from orchestratord.config.section import ConfigError
from orchestratord.config.settings import ENVIRONMENT_ONLY, Settings, check_bind


def load(path: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this start. Raises ConfigError."""
    raw = read_file(Path(path)) if path is not None else {}
    for secret in ENVIRONMENT_ONLY:
        if secret in raw:
            raise ConfigError(f"{secret} is not read from the file: set AUTH_TOKEN or AUTH_OPTIONAL in the environment")
    for key, value in environ.items():
        if key.startswith("ORCHD_"):
            _override(raw, key, value)
    raw["token"] = _token(environ)
    raw["auth_optional"] = _flag("AUTH_OPTIONAL", environ)
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(str(error), path)) from None
    check_bind(settings)
    return settings


def _flag(name: str, environ: Mapping[str, str]) -> bool:
    """A word that is neither yes nor no is a mistake: whoever sets it believes something."""
    word = environ.get(name, "").strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("", "0", "false", "no", "off"):
        return False
    raise ConfigError(f"{name} is true or false (or 1, yes, on, 0, no, off), and not {word[:32]!r}")


def read_file(path: Path) -> dict[str, Any]:
    """What the file says, as it stands. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
        parsed = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, a number too long: only ValueError to PyYAML
        raise ConfigError(f"{path} cannot be parsed: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} cannot be parsed: it nests too deep") from None
    if parsed is None:  # YAML of comments alone
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"{path} must be a table of sections at the top")
    return parsed


def _override(raw: dict[str, Any], key: str, value: str) -> None:
    """ORCHD_SERVER__PORT=9000 -> raw["server"]["port"] = 9000."""
    steps = key.removeprefix("ORCHD_").lower().split("__")
    if steps[0] in ENVIRONMENT_ONLY:
        raise ConfigError(f"{key} names no setting: it is AUTH_{steps[0].removeprefix('auth_').upper()}.")
    if steps[0] not in Settings.__struct_fields__:
        close = difflib.get_close_matches(steps[0], Settings.__struct_fields__, n=1)
        hint = f" Did you mean ORCHD_{close[0].upper()}?" if close else ""
        raise ConfigError(f"{key} names no setting.{hint}")
    node = raw
    for step in steps[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {step} is not a section")
    node[steps[-1]] = _scalar(value)


def _scalar(value: str) -> Any:
    try:
        return tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        return value


def _token(environ: Mapping[str, str]) -> str | None:
    if path := environ.get("AUTH_TOKEN_FILE"):
        try:
            token = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"AUTH_TOKEN_FILE {path} cannot be read: {error}") from None
        if not token:
            raise ConfigError(f"AUTH_TOKEN_FILE {path} is empty")
        return token
    token = environ.get("AUTH_TOKEN", "").strip()
    if "AUTH_TOKEN" in environ and not token:
        raise ConfigError("AUTH_TOKEN is empty: set it to a secret, or unset it for an open loopback daemon")
    return token or None
