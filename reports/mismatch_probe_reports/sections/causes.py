"""Causes: what the drift comes from, on what evidence, and what else could be looked at."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table

TITLE = "Causes"
_BASES = {
    "proof": "both sides differ in it",
    "test": "its fingerprint is in the numbers",
    "intervention": "without it the drift goes",
}


def build_causes(result: Json) -> Section:
    """Return the named causes with their evidence, or why none is named."""
    raw = result.get("causes")
    if reason := why_absent(raw):
        return Section("causes", TITLE, missing=reason)
    diagnosis = read_mapping(read_mapping(raw).get("diagnosis"))
    causes = read_rows(diagnosis.get("causes"))
    notes = []
    if looked := [read_text(item) for item in read_list(diagnosis.get("looked_at"))]:
        notes.append(f"Looked at, in this order: {', '.join(looked)}.")
    if missing := [read_text(item) for item in read_list(diagnosis.get("missing"))]:
        notes.append(f"More could be said with: {'; '.join(missing)}.")
    tables = (_causes(causes), _facts(causes)) if causes else ()
    return Section("causes", TITLE, lead=_sentence(diagnosis), tables=tables, notes=tuple(notes))


def _sentence(diagnosis: Json) -> str:
    sentence = read_text(diagnosis.get("sentence"), "The result says nothing of causes.")
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")


def _causes(causes: list[Json]) -> Table:
    rows = tuple(
        (
            Cell(str(rank)),
            Cell(read_text(item.get("title")), tone="fail"),
            Cell(read_text(item.get("because"))),
            Cell(_BASES.get(read_text(item.get("basis")), "")),
            Cell(read_text(item.get("code"))),
        )
        for rank, item in enumerate(causes, start=1)
    )
    columns = (
        Column("Rank", numeric=False),
        Column("Cause", numeric=False),
        Column("Because", numeric=False, rank=2),
        Column("Shown by", numeric=False, rank=3),
        Column("Code", numeric=False),
    )
    note = "`mismatch-probe explain CODE` says what to change."
    return Table("causes-named", "Causes, the most certain first", columns, rows, note=note)


def _facts(causes: list[Json]) -> Table:
    rows = []
    for item in causes:
        for fact in read_rows(item.get("facts")):
            value = fact.get("value")
            if isinstance(value, str):
                shown = fmt.clean(value)
            else:
                write = fmt.integer if isinstance(value, int) else fmt.number
                shown = write(read_number(value).value or 0.0)
            bar = read_number(fact.get("bar")).value
            rows.append(
                (
                    Cell(read_text(item.get("title"))),
                    Cell(read_text(fact.get("where")), code=True),
                    Cell(shown),
                    Cell("-" if bar is None else fmt.number(bar)),
                )
            )
    columns = (
        Column("Cause", numeric=False),
        Column("Where in result.json", numeric=False),
        Column("Measured"),
        Column("Bar"),
    )
    return Table("causes-facts", "The numbers behind them", columns, tuple(rows), collapsed=True)
