"""What is known of each method, for tables: formula, source and traps are read from its docstring."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mismatch_probe.weights.presets import FRAMEWORKS, framework_parameters
from mismatch_probe.weights.registry import methods

# Methods with PPO's clip under them share these; a column of defaults names only what differs from this.
_SHARED: dict[str, float | None] = {"eps_low": 0.2, "eps_high": 0.2, "dual_c": None, "clamp": None}


@dataclass(frozen=True, slots=True)
class Variant:
    """One value of a hyperparameter that says whose code a method follows, or which quantity it reads.

    Attributes:
        parameter: The hyperparameter.
        value: What to give it.
        meaning: What it stands for, and whose code it is.
        default: Whether it is the default.
    """

    parameter: str
    value: str
    meaning: str
    default: bool


@dataclass(frozen=True, slots=True)
class MethodDescription:
    """One row of a table of methods.

    Attributes:
        name: What a user writes.
        label: How a report calls it.
        level: "token" or "sequence".
        reads: Which ratio it looks at with its defaults.
        aggregation: How its source turns token losses into one number.
        summary: One line.
        formula: phi, in one paragraph; empty where the docstring has none.
        source: Paper or repository, and its defaults; empty where the docstring has none.
        traps: What goes wrong with it in practice.
        details: The whole docstring.
        parameters: Hyperparameters with their defaults.
        variants: The values of its hyperparameters that are words.
        frameworks: By framework that has the method, the hyperparameters that make it what is coded there, as
            `get_method_as_coded` has them.
    """

    name: str
    label: str
    level: str
    reads: str
    aggregation: str
    summary: str
    formula: str
    source: str
    traps: tuple[str, ...]
    details: str
    parameters: dict[str, float | str | None]
    variants: tuple[Variant, ...]
    frameworks: dict[str, dict[str, float | str | None]]


def describe_methods() -> list[MethodDescription]:
    """All methods with their defaults, sorted by name."""
    coded = {framework: framework_parameters(framework) for framework in FRAMEWORKS}
    rows = []
    for entry in methods:
        default = entry.item()
        details = inspect.cleandoc(entry.item.__doc__ or "")
        paragraphs = [" ".join(paragraph.split()) for paragraph in details.split("\n\n")]
        rows.append(
            MethodDescription(
                name=entry.name,
                label=default.label,
                level=default.level,
                reads=default.reads,
                aggregation=default.aggregation,
                summary=entry.summary,
                formula=next((text for text in paragraphs if text.startswith(("phi =", "phi_t ="))), ""),
                source=next((text[8:] for text in paragraphs if text.startswith("Source: ")), ""),
                traps=tuple(text[6:] for text in paragraphs if text.startswith("Trap: ")),
                details=details,
                parameters={
                    field.name: getattr(default, field.name) for field in dataclasses.fields(default)
                },
                variants=_variants(default),
                frameworks={
                    framework: parameters[entry.name]
                    for framework, parameters in coded.items()
                    if entry.name in parameters
                },
            )
        )
    return rows


def defaults_in_words(row: MethodDescription) -> str:
    """The numbers among a method's hyperparameters in one line, without those that all clips share; words are variants."""
    words = {variant.parameter for variant in row.variants}
    shared = _SHARED if "dual_c" in row.parameters else {"clamp": None}
    return in_words(
        {
            key: value
            for key, value in row.parameters.items()
            if key not in words and not (key in shared and shared[key] == value)
        }
    )


def coded_in_words(row: MethodDescription) -> dict[str, str]:
    """What each framework's code changes of a method's defaults, in one line; empty where it changes nothing."""
    return {
        framework: in_words(
            {key: value for key, value in coded.items() if value != row.parameters.get(key)},
        )
        for framework, coded in row.frameworks.items()
    }


def in_words(parameters: Mapping[str, float | str | None]) -> str:
    """Hyperparameters in one line."""
    return ", ".join(f"{key} {'none' if value is None else value}" for key, value in parameters.items())


def _variants(default: Any) -> tuple[Variant, ...]:
    return tuple(
        Variant(field.name, value, meaning, default=getattr(default, field.name) == value)
        for field in dataclasses.fields(default)
        for value, meaning in field.metadata.get("meanings", {}).items()
    )
