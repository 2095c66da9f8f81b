"""Reading numbers out of result.json by their path, so that what a number sets can name it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with the place it was read from.

    Attributes:
        path: In result.json, dotted.
        value: The number.
    """

    path: str
    value: float

    def __str__(self) -> str:
        return f"{self.path} = {self.value:.4g}"


def look_up(result: Mapping[str, Any], path: str) -> Any:
    """What stands at a dotted path, or None where any part of it is missing."""
    here: Any = result
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return None
        here = here[key]
    return here


def read(result: Mapping[str, Any], path: str) -> Measured | None:
    """A finite number, plain or the value of an estimate; None where it could not be had."""
    item = look_up(result, path)
    if isinstance(item, Mapping):
        item = item.get("value")
    if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
        return None
    return Measured(path, float(item))


def read_quantile(result: Mapping[str, Any], path: str, values: str, level: float) -> Measured | None:
    """A quantile of a table of levels and values; None where the table or the level is missing."""
    table = look_up(result, path)
    if not isinstance(table, Mapping):
        return None
    levels, numbers = table.get("levels") or [], table.get(values) or []
    for at, number in zip(levels, numbers, strict=False):
        if abs(at - level) < 1e-9 and isinstance(number, int | float) and math.isfinite(number):
            return Measured(f"{path}.{values}[{level:g}]", float(number))
    return None


def read_step(result: Mapping[str, Any], start: str, end: str, key: str) -> Measured | None:
    """A number of the step between two legs; None where the step was not taken."""
    for step in look_up(result, "legs.steps") or []:
        if step.get("from") == start and step.get("to") == end:
            found = read(step, key)
            return None if found is None else Measured(f"legs.steps[{start} -> {end}].{key}", found.value)
    return None
