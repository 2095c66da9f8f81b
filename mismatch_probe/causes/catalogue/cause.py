"""What the catalogue says of one cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["data", "sampling", "weights", "numerics", "routing", "training"]


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why a rollout engine and a trainer disagree.

    Attributes:
        id: Stable name, such as `stale-weights`.
        code: Stable code, MP6xx.
        family: Where it lies.
        title: In a few words.
        symptom: How it shows in a report.
        test: What in this tool shows it, and what the test cannot see.
        knob: The intervention that proves or removes it.
        effect: The published or measured size of the effect; says so where none was found.
        sources: Where `effect` and `symptom` come from.
        remedies: What to change, by framework or engine.
    """

    id: str
    code: str
    family: Family
    title: str
    symptom: str
    test: str
    knob: str
    effect: str
    sources: tuple[str, ...]
    remedies: tuple[tuple[str, str], ...]
