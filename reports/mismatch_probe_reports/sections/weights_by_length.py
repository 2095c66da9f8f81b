"""Corrections by length of the response: one table a quantity, methods against ranges of lengths."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, pick, read_number, read_rows, read_text
from mismatch_probe_reports.tables import Cell, Column, Table, Writer, estimate_cell

QUANTITIES = (
    ("positive_mass", "Z+ (mean phi where A > 0) by response length", fmt.near_one),
    ("negative_mass", "Z- (mean phi where A < 0) by response length", fmt.near_one),
    ("mass_ratio", "Z- / Z+ by response length", fmt.near_one),
)


def length_tables(methods: dict[str, Json]) -> list[Table]:
    """Return a table for each quantity; none where no method has lengths.

    Args:
        methods: Sections of result.json by name of the method.
    """
    ranges: dict[tuple[float, float], float | None] = {}
    for method in methods.values():
        for bucket in read_rows(method.get("by_length")):
            place = _place(bucket)
            if place is not None:
                ranges.setdefault(place, read_number(bucket.get("n")).value)
    if not ranges:
        return []
    columns = (
        Column("Method", numeric=False),
        *(Column(_title(place, ranges[place])) for place in sorted(ranges)),
    )
    tables = []
    for key, caption, write in QUANTITIES:
        rows = []
        for name, method in methods.items():
            found = {_place(bucket): bucket for bucket in read_rows(method.get("by_length"))}
            if any(key in bucket for bucket in found.values()):
                cells = (_cell(found.get(place), key, write) for place in sorted(ranges))
                rows.append((Cell(read_text(method.get("label"), fmt.clean(name))), *cells))
        if rows:
            tables.append(
                Table(
                    f"weights-length-{key.replace('_', '-')}", caption, columns, tuple(rows), collapsed=True
                )
            )
    return tables


def _place(bucket: Json) -> tuple[float, float] | None:
    low, high = read_number(bucket.get("low")).value, read_number(bucket.get("high")).value
    return None if low is None or high is None else (low, high)


def _title(place: tuple[float, float], count: float | None) -> str:
    low, high = place
    span = fmt.integer(low) if low == high else f"{fmt.integer(low)} to {fmt.integer(high)}"
    return f"{span} tokens" + ("" if count is None else f" (n = {fmt.integer(count)})")


def _cell(bucket: Json | None, key: str, write: Writer) -> Cell:
    """Write a value without its interval, which result.json has."""
    if bucket is None:
        return Cell("-", tone="muted")
    cell = estimate_cell(pick(bucket, key), write)
    return Cell(cell.text, tone=cell.tone)
