"""drift_profile.json: strict reading, plain writing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mismatch_probe.drift.profile import SCHEMA_VERSION, DriftProfile
from mismatch_probe.errors import ConfigError
from mismatch_probe.result import to_json

DIGITS = 8
MAX_BYTES = 8 * 2**20
_HINT = "export the profile again: mismatch-probe export RUN --to drift-profile"
_NUMBERS = re.compile(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]")


def profile_to_json(profile: DriftProfile) -> dict[str, Any]:
    """Plain JSON values, numbers to 8 digits, the version first."""
    content: dict[str, Any] = _rounded(to_json(profile))
    return {"schema_version": content.pop("schema_version"), **content}


def profile_text(profile: DriftProfile) -> str:
    """The file: indented, each list of numbers on one line."""
    text = json.dumps(profile_to_json(profile), indent=1, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text) + "\n"


def read_profile(path: Path) -> DriftProfile:
    """Reads a file; see `DriftProfile.read`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes: no drift profile", hint=_HINT)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}", hint=_HINT) from error
    return profile_from_json(content)


def profile_from_json(content: Any) -> DriftProfile:
    """Checks and builds a profile.

    Raises:
        ConfigError: Something is missing, unknown, of the wrong type, not finite or out of range.
    """
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"a drift profile of schema version {SCHEMA_VERSION} is expected, found {version!r}", hint=_HINT
        )
    try:
        profile = _built(content)
    except ConfigError as error:
        raise ConfigError(f"the drift profile is damaged: {error}", hint=_HINT) from error
    unknown = _unknown(content, to_json(profile))
    if unknown:
        raise ConfigError(f"the drift profile has an unknown key {unknown}", hint=_HINT)
    return profile


def _built(content: Any) -> DriftProfile:
    from pydantic import ValidationError

    try:
        profile: DriftProfile = _adapter().validate_json(json.dumps(content, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {first['msg']}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return profile


@lru_cache(maxsize=1)
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(DriftProfile)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _unknown(given: Any, known: Any, where: str = "") -> str | None:
    """The first key that the profile made of `given` does not have; what it has and `given` has not may be a default."""
    if isinstance(given, dict) and isinstance(known, dict):
        for key, item in given.items():
            if key not in known and item is not None:
                return f"{where}{key}"
            found = _unknown(item, known.get(key), f"{where}{key}.")
            if found is not None:
                return found
    if isinstance(given, list) and isinstance(known, list):
        pairs = enumerate(zip(given, known, strict=False))
        return next((u for i, (a, b) in pairs if (u := _unknown(a, b, f"{where}{i}.")) is not None), None)
    return None
