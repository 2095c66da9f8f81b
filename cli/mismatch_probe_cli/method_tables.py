"""What `methods` says of the corrections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mismatch_probe.weights.describe import coded_in_words, defaults_in_words
from mismatch_probe_cli.listing import aligned, words

if TYPE_CHECKING:
    from mismatch_probe.weights import MethodDescription
    from mismatch_probe_reports.tables import Section


def methods_section(rows: Sequence[MethodDescription], framework: str | None, width: int | None) -> Section:
    """All corrections: what they read, their defaults, and what each framework's code changes of them.

    Args:
        rows: What to list.
        framework: Whose code is of interest; None: everyone's.
        width: Of the terminal, where a narrow one has no room for sources; None: there is room.
    """
    from mismatch_probe_reports.tables import Cell, Section, Table

    heads = ("Name", "Level", "Reads", "Defaults", "Source")
    defaults = Table(
        "methods",
        "Corrections (pi is train, mu rollout: train/rollout is pi / mu)",
        tuple(
            words(head, rank=rank)
            for head, rank in zip(heads, (1, 1, 1, 2, 2 if width is None else 3), strict=True)
        ),
        tuple(
            (
                Cell(row.name, code=True),
                Cell(row.level),
                Cell(row.reads),
                Cell(_defaults(row)),
                Cell(row.source, tone="muted"),
            )
            for row in rows
        ),
    )
    coded = Table(
        "as-coded",
        "As coded: what a framework's own code changes of the defaults",
        (words("Name"), words("Framework"), words("Differs in")),
        tuple(
            (Cell(row.name, code=True), Cell(", ".join(names)), Cell(changes or "the defaults"))
            for row in rows
            for names, changes in _coded(row, framework)
        ),
    )
    notes = ("mismatch-probe methods NAME prints formula, traps and variants of one.",)
    return Section("methods", f"{len(rows)} corrections", tables=(defaults, coded), notes=notes)


def method_section(row: MethodDescription) -> Section:
    """One correction in full."""
    from mismatch_probe_reports.tables import Cell, Section, Table

    numbers = Table(
        "defaults",
        "Hyperparameters",
        (words("Name"), words("Default")),
        tuple((Cell(key), Cell("none" if value is None else str(value))) for key, value in row.parameters.items()),
    )  # fmt: skip
    variants = Table(
        "variants",
        "Variants",
        (words("Set"), words("Meaning")),
        tuple(
            (Cell(f"{v.parameter}={v.value}" + (" (default)" if v.default else "")), Cell(v.meaning))
            for v in row.variants
        ),
    )
    coded = Table(
        "as-coded",
        "As coded",
        (words("Framework"), words("Differs in")),
        tuple((Cell(", ".join(names)), Cell(changes or "the defaults")) for names, changes in _coded(row)),
    )
    said = [row.formula, f"Level {row.level}, reads {row.reads}, adds up as {row.aggregation}."]
    said += [f"Source: {row.source}"] if row.source else []
    said += [f"Trap: {trap}" for trap in row.traps]
    tables = tuple(table for table in (numbers, variants, coded) if table.rows)
    return Section("method", f"{row.name}: {row.label}", row.summary, tables, notes=tuple(filter(None, said)))


def method_lines(rows: Sequence[MethodDescription], framework: str | None) -> list[str]:
    """One line a correction, what is coded where included."""
    return aligned(
        [
            (
                row.name,
                row.level,
                row.reads,
                "; ".join(
                    [
                        _defaults(row),
                        row.source.rstrip("."),
                        *(f"{'/'.join(names)}: {text or 'the defaults'}" for names, text in _coded(row, framework)),
                    ]
                ),
            )
            for row in rows
        ]
    )  # fmt: skip


def _defaults(row: MethodDescription) -> str:
    return defaults_in_words(row) or "none"


def _coded(row: MethodDescription, framework: str | None = None) -> list[tuple[list[str], str]]:
    """Frameworks that change the same, and what."""
    alike: dict[str, list[str]] = {}
    for name, changes in coded_in_words(row).items():
        if framework in (None, name):
            alike.setdefault(changes, []).append(name)
    return [(names, changes) for changes, names in alike.items()]
