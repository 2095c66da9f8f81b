"""From a TOML file and `--set` assignments to a `ProbeConfig`, with errors that name the nearest known key."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mismatch_probe.config.bars import Bars, load_bars
from mismatch_probe.config.model import ProbeConfig
from mismatch_probe.errors import ConfigError

_FREE_FORM = {("rollout", "options"), ("train", "options"), ("bars",)}
_MAX_CONFIG_BYTES = 1_000_000


def load_config(
    path: Path | None = None,
    assignments: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> ProbeConfig:
    """Builds a configuration; later sources win: `base`, the file, `overrides`, then `--set`.

    Args:
        path: A TOML file, or None.
        assignments: Strings "a.b=value" from `--set`.
        overrides: Values by dotted key from options of their own; None values are left out.
        base: A nested mapping to start from, such as the configuration in a manifest.

    Raises:
        ConfigError: A file, key or value that cannot be used; the message names the key.
    """
    values: dict[str, Any] = json.loads(json.dumps(base or {}))
    if path is not None:
        _merge(values, read_toml(path))
    for key, value in (overrides or {}).items():
        if value is not None:
            _assign(values, key, value)
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        _assign(values, key, value)
    try:
        return ProbeConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits "a.b=value"; the value is TOML if it parses as TOML, else the bare text.

    Raises:
        ConfigError: There is no "=".
    """
    key, separator, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not separator or not key:
        raise ConfigError(
            f"--set {text!r} has no key=value", hint="write it as --set sampling.temperature=0.7"
        )
    try:
        return key, tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        return key, raw


def known_keys(model: type[BaseModel] = ProbeConfig, prefix: str = "") -> list[str]:
    """All dotted keys of the configuration."""
    keys = []
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{name}"
        keys.append(dotted)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += known_keys(info.annotation, f"{dotted}.")
    return keys


def read_bars(path: Path) -> dict[str, Any]:
    """Bars of a TOML file by key: a copy of bars.toml, or a config file with a [bars] table.

    Raises:
        ConfigError: The file cannot be read, names no bar or an unknown one, or has a value out of range.
    """
    content = read_toml(path)
    table = content.get("bars")
    if table is None:
        named = content
    elif not isinstance(table, dict):
        raise ConfigError(
            f"{path}: bars is no table", hint="write [bars], and below it a line KEY = VALUE for each bar"
        )
    else:
        named = table
        beside = [key for key in content if key in Bars.model_fields]
        if beside:
            raise ConfigError(
                f"{path}: {beside[0]} stands above the table [bars] and would not be read",
                hint="move it below [bars]",
            )
    if not named:
        raise ConfigError(f"{path} names no bar", hint="write a line such as: k3_max = 1e-2")
    load_bars(named)
    return dict(named)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a mapping.

    Raises:
        ConfigError: It cannot be read, is too large, or is not TOML.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path} is too large for a configuration", hint="a config file is a few lines of TOML"
            )
        # Editors on Windows begin a file with a byte order mark.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist", hint="check the path") from error
    except IsADirectoryError as error:
        raise ConfigError(
            f"{path} is a folder, not a config file", hint="give the TOML file itself"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        # A ValueError that is no TOMLDecodeError is an integer of thousands of digits.
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
        node = child
    node[last] = value


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    location = tuple(str(part) for part in first["loc"])
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        choices = [
            known
            for known in known_keys()
            if not any(known.startswith(".".join(f) + ".") for f in _FREE_FORM)
        ]
        nearest = difflib.get_close_matches(key, choices, n=1, cutoff=0.4) or difflib.get_close_matches(
            location[-1], [choice.rsplit(".", 1)[-1] for choice in choices], n=1
        )
        return ConfigError(
            f"unknown key {key!r}",
            hint=f"did you mean {nearest[0]!r}?" if nearest else "see the docs for all keys",
        )
    message = str(first["msg"]).removeprefix("Value error, ")
    given = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return ConfigError(f"{key or 'configuration'}: {message}{given}")
