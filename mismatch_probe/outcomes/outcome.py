"""One bar or check held against a result, and reading the numbers it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.findings import Finding, Severity, finding

Status = Literal["held", "broken", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One bar or check, held against a result.

    Attributes:
        name: What was held: words that stay the same from run to run.
        code: Of the finding that it makes when it is broken.
        status: "held", "broken", or "unmeasured" where the number could not be had.
        severity: Of that finding.
        detail: One sentence with the numbers in words, or why there is none.
        keys: Bars (of bars.toml) that had a say in it.
        observed: What was measured, or None.
        bar: What it was held against, or None.
        unit: Of the two.
        n: Observations behind `observed`, or None.
    """

    name: str
    code: str
    status: Status
    severity: Severity
    detail: str
    keys: tuple[str, ...] = ()
    observed: float | None = None
    bar: float | None = None
    unit: str = ""
    n: int | None = None

    @property
    def would_pass_at(self) -> float | None:
        """The bar that it would just pass at; None where it passes or has no bar."""
        return self.observed if self.status == "broken" and self.bar is not None else None

    def finding(self) -> Finding:
        """The finding of a broken bar."""
        return finding(
            self.code, self.severity, self.detail,
            observed=self.observed, bar=self.bar, unit=self.unit, n=self.n,
        )  # fmt: skip


def value_of(section: Mapping[str, Any] | None, key: str) -> float | None:
    """A finite number of a section, whether it is plain or an estimate; None where it could not be had.

    NaN is none: it is neither above nor below a bar, so it would hold at every one.
    """
    item = (section or {}).get(key)
    if isinstance(item, Mapping):
        item = item.get("value")
    if not isinstance(item, int | float) or isinstance(item, bool):
        return None
    try:
        value = float(item)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def missing(name: str, code: str, severity: Severity, reason: str, keys: tuple[str, ...]) -> Outcome:
    """The outcome of a number that could not be had."""
    return Outcome(name, code, "unmeasured", severity, reason, keys)


def reason_of(*sections: Mapping[str, Any] | str | float | None) -> str:
    """Why a number could not be had: the innermost reason that was given."""
    said = [
        item if isinstance(item, str) else item.get("reason")
        for item in sections
        if isinstance(item, Mapping | str)
    ]
    return next((str(reason) for reason in reversed(said) if reason), "not measured in this run")
