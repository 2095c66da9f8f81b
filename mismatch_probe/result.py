"""result.json: turning results into JSON and reading them back."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mismatch_probe.errors import RunDirectoryError
from mismatch_probe.trace.parts import read_json

RESULT_SCHEMA_VERSION = 1
SCHEMA_PATH = Path(__file__).with_name("result.schema.json")
"""The JSON Schema of result.json; `python -m tools.document_result_schema` writes it from the code."""


def to_json(value: Any) -> Any:
    """Plain JSON values of a result: dataclasses become objects, arrays lists, NaN and infinity null.

    A number that cannot be had is null and its object carries the reason; a bare NaN here has lost its reason, so the
    writers of results must not produce one where a reader would expect a number.

    Args:
        value: Dataclasses, mappings, sequences, arrays and scalars, nested.

    Raises:
        TypeError: Something that is none of these.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        # An estimate that was had needs no reason.
        return {key: item for key, item in fields.items() if key != "reason" or item is not None}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return [to_json(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_result(path: Path) -> dict[str, Any]:
    """Reads result.json.

    Raises:
        RunDirectoryError: It is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise RunDirectoryError(
            f"{path.parent} has no result yet", hint=f"run: mismatch-probe measure {path.parent}"
        )
    result = read_json(path)
    version = result.get("schema_version") if isinstance(result, dict) else None
    if version != RESULT_SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {version!r}, this version reads {RESULT_SCHEMA_VERSION}",
            hint=_mend(path),
        )
    return dict(result)


def check_schema(result: Mapping[str, Any], path: Path) -> None:
    """Holds a result against the published schema, for one that may come from elsewhere.

    Args:
        result: What `read_result` returned.
        path: Where it was read from, for the message.

    Raises:
        RunDirectoryError: It does not follow the schema, or has a number that is not finite, which JSON has no form for
            and Python reads all the same; the message says where.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = read_json(SCHEMA_PATH)
    place = _not_finite(result)
    if place is not None:
        raise RunDirectoryError(f"{path} is damaged: {place} is no finite number", hint=_mend(path))
    try:
        error = best_match(Draft202012Validator(schema).iter_errors(result))
    except RecursionError as deep:
        raise RunDirectoryError(f"{path} is nested too deeply for a result", hint=_mend(path)) from deep
    if error is not None:
        raise RunDirectoryError(
            f"{path} does not follow the schema of results: {error.json_path}: {error.message[:300]}",
            hint=_mend(path),
        )


def _mend(path: Path) -> str:
    """How to have the result again: measuring where the run is at hand, else from where it came."""
    if (path.parent / "manifest.json").is_file():
        return f"run: mismatch-probe measure {path.parent}"
    return "give a result.json as this version wrote it; measure, on the run's own directory, writes it again"


def _not_finite(result: Mapping[str, Any]) -> str | None:
    """Where a number is NaN, infinite, or an integer beyond float64; None where none is. Depth is no limit to it."""
    left: list[tuple[str, Any]] = [("$", result)]
    while left:
        place, item = left.pop()
        if isinstance(item, Mapping):
            left += [(f"{place}.{key}", value) for key, value in item.items()]
        elif isinstance(item, list):
            left += [(f"{place}[{index}]", value) for index, value in enumerate(item)]
        elif isinstance(item, int | float) and not abs(item) <= sys.float_info.max:
            return place
    return None
