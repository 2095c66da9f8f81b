"""Tolerant reading of result.json: what is absent becomes a reason, never a zero and never an exception."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports.format import clean

Json = Mapping[str, Any]

NOT_REPORTED = "not reported in result.json"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of result.json, whether it came bare or as an estimate with an interval.

    Attributes:
        value: The number, or None.
        low: Lower end of the 95 % interval, or None.
        high: Upper end of the 95 % interval, or None.
        n: How many observations it rests on, or None where that is not stated.
        reason: Why the value (or else the interval) is missing; empty when nothing is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str = ""


def read_float(raw: object) -> float | None:
    """Return a finite float, or None for anything that is not a number."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    try:
        value = float(raw)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def read_number(raw: object) -> Number:
    """Read a bare number, an estimate object, or null with or without a reason."""
    if isinstance(raw, Mapping):
        value = read_float(raw.get("value"))
        count = read_float(raw.get("n"))
        reason = read_text(raw.get("reason"))
        if value is None and not reason:
            reason = NOT_REPORTED
        low, high = read_float(raw.get("ci_low")), read_float(raw.get("ci_high"))
        return Number(value, low, high, None if count is None else int(count), reason)
    value = read_float(raw)
    return Number(value, reason="" if value is not None else NOT_REPORTED)


def pick(record: object, key: str) -> Number:
    """Read the number `key` of a record; where it is null, the reason may stand beside it.

    Looked for in this order: inside the number, `<key>_reason`, `reason` and `note` of the record.
    """
    fields = read_mapping(record)
    number = read_number(fields.get(key))
    if number.value is not None or number.reason != NOT_REPORTED:
        return number
    for beside in (f"{key}_reason", "reason", "note"):
        if isinstance(fields.get(beside), str):
            return replace(number, reason=read_text(fields[beside], NOT_REPORTED))
    return number


def read_text(raw: object, default: str = "") -> str:
    """Return a cleaned string, or `default` where there is none."""
    return default if raw is None else (clean(raw) or default)


def read_mapping(raw: object) -> Json:
    """Return the mapping itself, or an empty one for anything else."""
    return raw if isinstance(raw, Mapping) else {}


def read_rows(raw: object) -> list[Json]:
    """Return the mappings of a list, or an empty list."""
    return [item for item in raw if isinstance(item, Mapping)] if isinstance(raw, list | tuple) else []


def read_list(raw: object) -> list[Any]:
    """Return a list, or an empty one."""
    return list(raw) if isinstance(raw, list | tuple) else []


def read_array(raw: object) -> NDArray[np.float64]:
    """Return a one-dimensional float array; entries that are not finite numbers become NaN.

    Shapes: any list of n entries -> [n]; anything that is not a list -> [0].
    """
    values = [read_float(item) for item in read_list(raw)]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def look_up(raw: object, *path: str) -> Any:
    """Follow keys through nested mappings; None where the path ends early."""
    for key in path:
        raw = read_mapping(raw).get(key)
    return raw


def why_absent(raw: object) -> str:
    """Return why a section cannot be shown, or an empty string when it can.

    A section is absent when it is null, not an object, empty, or says `available: false`, or is a bare
    `{"value": null, "reason": ...}`.
    """
    if not isinstance(raw, Mapping) or not raw:
        return NOT_REPORTED
    reason = read_text(raw.get("reason"))
    if raw.get("available") is False:
        return reason or NOT_REPORTED
    if "value" in raw and raw["value"] is None and set(raw) <= {"value", "reason", "n", "ci_low", "ci_high"}:
        return reason or NOT_REPORTED
    return ""
