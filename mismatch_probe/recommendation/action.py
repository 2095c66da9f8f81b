"""One thing to do, the number that says so, and what it does to this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mismatch_probe.export.measured import Measured, look_up
from mismatch_probe.stats.estimate import Estimate

Kind = Literal["measurement", "engine", "correction", "avoid"]


@dataclass(frozen=True, slots=True)
class Effect:
    """What an action does to one number of this run; numbers that were not measured are None with a reason.

    Attributes:
        quantity: Which number.
        unit: "nats", or "share" for one between 0 and 1.
        before: Without the action.
        after: With it.
        change: What it comes to, from paired prompts.
        change_means: What `change` is: a share removed, a difference.
        source: Where in result.json the numbers stand.
    """

    quantity: str
    unit: Literal["nats", "share"]
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None
    change_means: str
    source: str


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do.

    Attributes:
        code: Finding code that the reason belongs to.
        kind: "measurement": mend or enlarge it first. "engine": lowers the drift at its source. "correction": weighs what
            is left. "avoid": what this drift would break.
        action: What to do, in words.
        because: Why, with the numbers.
        measured: The number that decided, or None where there is none.
        effects: What it does on this data.
        no_effect: Why there is no effect to show; None where there is one.
    """

    code: str
    kind: Kind
    action: str
    because: str
    measured: Measured | None
    effects: tuple[Effect, ...] = ()
    no_effect: str | None = None

    def section(self, rank: int) -> dict[str, Any]:
        """As it stands in result.json."""
        measured = self.measured
        return {
            "rank": rank,
            "code": self.code,
            "kind": self.kind,
            "action": self.action,
            "because": self.because,
            "measured": None if measured is None else {"name": measured.path, "value": measured.value},
            "effects": list(self.effects),
            "no_effect": self.no_effect,
        }


def estimate_at(result: Mapping[str, Any], path: str) -> Estimate | None:
    """An estimate of result.json by its path; None where it is not there."""
    return as_estimate(look_up(result, path))


def as_estimate(found: Any) -> Estimate | None:
    """An estimate as result.json holds it, read back; None where it is none or has no value."""
    if not isinstance(found, Mapping) or not isinstance(found.get("value"), int | float):
        return None
    return Estimate(
        float(found["value"]),
        found.get("ci_low"),
        found.get("ci_high"),
        int(found.get("n") or 0),
        found.get("reason"),
    )
