"""What an exported text says to whoever reads it: a YAML or TOML parser, or bash."""

from __future__ import annotations

import subprocess
import tomllib
from typing import Any

import yaml

from mismatch_probe.export import ExportedConfig

_EXPAND = 'source /dev/stdin; printf "%s\\0" "${MISMATCH_ARGS[@]}"'


def words(text: str) -> list[str]:
    """The arguments that a launch script would hand on."""
    done = subprocess.run(
        ["bash", "-euc", _EXPAND], input=text, capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.split("\0")[:-1]


def load(exported: ExportedConfig) -> dict[str, Any]:
    """Keys and values; of arguments, each with the words after it."""
    if exported.format == "toml":
        return tomllib.loads(exported.text)
    if exported.format == "yaml":
        parsed = yaml.safe_load(exported.text)
        assert isinstance(parsed, dict)
        return parsed
    found: dict[str, Any] = {}
    last = ""
    for word in words(exported.text):
        if word.startswith("--"):
            last = word.removeprefix("--")
            found[last] = []
        elif "=" in word:
            key, _, value = word.partition("=")
            found[key] = value
        else:
            found[last].append(word)
    return found
