"""Tables and sections without a medium: HTML, terminal and Markdown all render these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Number, read_number

Writer = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell.

    Attributes:
        text: What is shown.
        detail: A second, quieter part: the interval.
        reason: Why the value or the interval is missing.
        tone: `exact`, `pass`, `fail`, `warn`, `info`, `muted` or empty; views colour by it, never only by it.
        link: Target inside the page, or an address where `text` is a source that can be read on the web.
        code: Whether `text` is a name to be typed or searched for as it is.
    """

    text: str
    detail: str = ""
    reason: str = ""
    tone: str = ""
    link: str = ""
    code: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """One table column.

    Attributes:
        title: Head.
        numeric: Whether cells are right-aligned numbers.
        help: What the column means, for a reader who does not know the term.
        rank: 1 is shown on every terminal, 2 on a common one, 3 only where there is room,
            4 on none; HTML shows all.
    """

    title: str
    numeric: bool = True
    help: str = ""
    rank: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption; the first column heads the rows.

    Attributes:
        name: Identifier, used as anchor.
        caption: What the table is.
        columns: Its columns.
        rows: Its rows, a cell for each column.
        note: Said below it.
        collapsed: Whether a page shows it closed.
        grouped: Whether the first column names groups of consecutive rows, to be shown as a heading of each group.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    collapsed: bool = False
    grouped: bool = False

    @property
    def shown_columns(self) -> tuple[Column, ...]:
        """The columns that stand beside each other: without the one that heads the groups."""
        return self.columns[1:] if self.grouped else self.columns

    @property
    def groups(self) -> list[tuple[str, tuple[tuple[Cell, ...], ...]]]:
        """The rows as groups with their headings; one group without a heading where the table has none."""
        if not self.grouped:
            return [("", self.rows)]
        runs = groupby(self.rows, key=lambda row: row[0].text)
        return [(heading, tuple(row[1:] for row in rows)) for heading, rows in runs]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the report.

    Attributes:
        name: Identifier, used as anchor.
        title: Head.
        lead: What the part says, in a sentence computed from the numbers.
        tables: Its tables.
        figures: Names of its figures.
        notes: Sentences after the tables.
        missing: Why the whole part is not there; empty when it is.
        brief: Tables for views without room, which have these in place of `tables`; the page leaves them out.
    """

    name: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: str = ""
    brief: tuple[Table, ...] = ()


def estimate_cell(raw: object, write: Writer = fmt.number) -> Cell:
    """Write a number of result.json with its interval, or say why there is none."""
    value = raw if isinstance(raw, Number) else read_number(raw)
    if value.value is None:
        return Cell(fmt.NOT_AVAILABLE, reason=value.reason, tone="muted")
    return Cell(write(value.value), detail=interval(value, write), reason=value.reason)


def interval(value: Number, write: Writer = fmt.number) -> str:
    """Write the 95 % interval, or an empty string where there is none."""
    if value.low is None or value.high is None:
        return ""
    low, high = write(value.low), write(value.high)
    if low.endswith(" %") and high.endswith(" %"):
        return f"[{low[:-2]}, {high[:-2]}] %"
    return f"[{low}, {high}]"


def count_cell(raw: object) -> Cell:
    """Write a count."""
    return estimate_cell(raw, fmt.integer)


def text_cell(text: str, tone: str = "") -> Cell:
    """Write a string that has been cleaned before."""
    return Cell(text or "not reported", tone=tone if text else "muted")


FACT_COLUMNS = (
    Column("Quantity", numeric=False),
    Column("Value"),
    Column("n", rank=2),
    Column("What it says", numeric=False, rank=3),
)


def fact(name: str, raw: object, meaning: str, write: Writer = fmt.number) -> tuple[Cell, ...]:
    """Return one row of a table of key numbers: name, value with interval, n, what it says."""
    value = raw if isinstance(raw, Number) else read_number(raw)
    count = Cell("") if value.n is None else Cell(fmt.integer(value.n))
    return (Cell(name), estimate_cell(value, write), count, Cell(meaning, tone="muted"))


def fact_table(name: str, caption: str, facts: Sequence[tuple[Cell, ...]], note: str = "") -> Table:
    """Return a table of key numbers."""
    return Table(name, caption, FACT_COLUMNS, tuple(facts), note)


def settings_table(
    name: str, caption: str, settings: Mapping[str, object], *, collapsed: bool = False
) -> Table:
    """Return a two-column table of settings; None is shown as `not set`."""
    rows = tuple((Cell(fmt.clean(key)), Cell(fmt.scalar(value))) for key, value in settings.items())
    columns = (Column("Setting", numeric=False), Column("Value", numeric=False))
    return Table(name, caption, columns, rows, collapsed=collapsed)


def fold_reasons(table: Table) -> Table:
    """Move a reason that several cells share below the table, so that it is read once."""
    counts = Counter(cell.reason for row in table.rows for cell in row if cell.reason)
    shared = {
        reason: f"see ({number})"
        for number, reason in enumerate((r for r in counts if counts[r] > 1), start=1)
    }
    if not shared:
        return table
    rows = tuple(
        tuple(replace(cell, reason=shared.get(cell.reason, cell.reason)) for cell in row)
        for row in table.rows
    )
    notes = [f"{mark.removeprefix('see ')} {reason}" for reason, mark in shared.items()]
    return replace(table, rows=rows, note=" ".join([table.note, *notes]).strip())


def reasons(table: Table, columns: Sequence[int] | None = None) -> list[str]:
    """Return the distinct reasons inside a table, in order, for views that print them below it."""
    found: dict[str, None] = {}
    for row in table.rows:
        for index, cell in enumerate(row):
            if cell.reason and (columns is None or index in columns):
                found.setdefault(cell.reason)
    return list(found)
