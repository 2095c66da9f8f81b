"""A matrix of engines: who samples, who reads, and how far apart they are."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TITLE = "Engines against each other"
VERDICT_TONE = {"pass": "pass", "drift": "fail", "inconclusive": "warn"}
DIRECTION = (
    "A row's engine sampled, a column's engine read the same ids. What one engine never samples shows only in the row of "
    "the other, so a pair of rollout engines has two cells; a training-side forward samples nothing and has no row."
)


def matrix_section(matrix: Json) -> Section:
    """Return the whole matrix as a section.

    Args:
        matrix: matrix.json as a mapping.
    """
    cells = read_rows(matrix.get("cells"))
    tables = [_grid(matrix, cells), _pairs(cells), _directions(matrix), *_between(matrix)]
    return Section(
        name="matrix",
        title=TITLE,
        lead=_lead(matrix, cells),
        tables=tuple(table for table in tables if table is not None and table.rows),
        figures=("matrix",),
        notes=(DIRECTION,),
    )


def subject(matrix: Json) -> str:
    """Say what was held against what, in a line."""
    model = read_text(look_up(matrix, "model", "name"), "model not reported")
    sampling = read_mapping(matrix.get("sampling"))
    count = read_number(matrix.get("num_sequences")).value
    told = "" if count is None else f", {fmt.plural(int(count), 'response')} a sampler"
    return f"{model}, temperature {fmt.scalar(sampling.get('temperature'))}{told}"


def _lead(matrix: Json, cells: list[Json]) -> str:
    failed = [cell for cell in cells if cell.get("status") != "done"]
    drifting = [cell for cell in cells if cell.get("verdict") == "drift"]
    known = [(value, cell) for cell in cells if (value := read_number(cell.get("k3")).value) is not None]
    said = f"{len(cells) - len(failed)} of {fmt.plural(len(cells), 'pair')} measured, {len(drifting)} with drift."
    if known:
        value, cell = max(known, key=lambda item: item[0])
        pair = f"{read_text(cell.get('source'))} read by {read_text(cell.get('reader'))}"
        exact = sum(value == 0.0 for value, _ in known)
        said += f" Farthest apart: {pair}, K3 {fmt.number(value)} nats." if value else ""
        said += f" {fmt.plural(exact, 'pair')} exactly equal." if exact else ""
    return said


def _grid(matrix: Json, cells: list[Json]) -> Table:
    readers = [read_text(name) for name in read_list(matrix.get("readers"))]
    held = {(read_text(cell.get("source")), read_text(cell.get("reader"))): cell for cell in cells}
    rows = []
    for source in (read_text(name) for name in read_list(matrix.get("sources"))):
        rows.append((Cell(source), *(_k3(held.get((source, reader))) for reader in readers)))
    return Table(
        name="matrix-k3",
        caption="K3 a token (nats): the row's engine sampled, the column's engine read",
        columns=(Column("Sampled by", numeric=False), *(Column(reader) for reader in readers)),
        rows=tuple(rows),
    )


def _k3(cell: Json | None) -> Cell:
    if cell is None:
        return Cell(fmt.NOT_AVAILABLE, tone="muted")
    if cell.get("status") != "done":
        return Cell("failed", reason=read_text(cell.get("reason")), tone="fail")
    number = read_number(cell.get("k3"))
    if number.value == 0.0:
        return Cell("EXACT", tone="exact")
    shown = estimate_cell(cell.get("k3"))
    return Cell(shown.text, shown.detail, shown.reason, VERDICT_TONE.get(read_text(cell.get("verdict")), ""))


def _pairs(cells: list[Json]) -> Table:
    columns = (
        Column("Sampled by", numeric=False),
        Column("Read by", numeric=False),
        Column("Verdict", numeric=False),
        Column("K3 (nats)"),
        Column(
            "Over rounding",
            help="K3 over that of the trainer in its own dtype against float32, on the same tokens: what rounding does",
        ),
        Column("Mean |log-ratio| (nats)", rank=2),
        Column("Std of log W (nats)", rank=2),
        Column("Reader's floor (K3)", rank=3, help="The reader against itself, batched otherwise"),
        Column("Findings", numeric=False, rank=2),
        Column("Report", numeric=False, rank=4),
    )
    return Table("matrix-pairs", "Every pair", columns, tuple(_pair(cell) for cell in cells))


def _pair(cell: Json) -> tuple[Cell, ...]:
    names = (Cell(read_text(cell.get("source"))), Cell(read_text(cell.get("reader"))))
    if cell.get("status") != "done":
        gap = Cell(fmt.NOT_AVAILABLE, tone="muted")
        failed = Cell("failed", reason=read_text(cell.get("reason"), "not reported"), tone="fail")
        return (*names, failed, *[gap] * 7)
    verdict = read_text(cell.get("verdict"))
    floor = read_number(cell.get("floor_k3"))
    return (
        *names,
        Cell(verdict, tone=VERDICT_TONE.get(verdict, "")),
        _k3(cell),
        _over_rounding(cell),
        estimate_cell(cell.get("mean_abs_log_ratio")),
        estimate_cell(cell.get("log_weight_std")),
        Cell("EXACT", tone="exact") if floor.value == 0.0 else estimate_cell(floor),
        Cell(", ".join(read_text(code) for code in read_list(cell.get("findings"))) or "none"),
        _details(cell),
    )


def _details(cell: Json) -> Cell:
    """The pair's report, or its numbers where none was drawn."""
    what, file = ("report", "report.html") if cell.get("report", True) else ("result", "result.json")
    return Cell(what, link=f"{read_text(cell.get('run'))}/{file}")


def _over_rounding(cell: Json) -> Cell:
    over, bar = read_number(cell.get("over_rounding")).value, read_number(cell.get("over_rounding_bar")).value
    if over is None:
        return Cell(fmt.NOT_AVAILABLE, reason="no trainer was read in float32 on these tokens", tone="muted")
    return Cell(fmt.times(over), tone="fail" if bar is not None and over > bar else "")


def _directions(matrix: Json) -> Table | None:
    rows = read_rows(matrix.get("directions"))
    columns = (
        Column("First", numeric=False),
        Column("Second", numeric=False),
        Column("K3 on the first's tokens"),
        Column("K3 on the second's tokens"),
    )
    shown = tuple(
        (
            Cell(read_text(row.get("first"))),
            Cell(read_text(row.get("second"))),
            estimate_cell(row.get("first_sampled")),
            estimate_cell(row.get("second_sampled")),
        )
        for row in rows
    )
    note = "Where the two differ by much, one engine samples what the other gives almost no probability."
    return Table("matrix-directions", "Rollout engines in both directions", columns, shown, note)


def _between(matrix: Json) -> list[Table]:
    tables = []
    for number, (source, raw) in enumerate(read_mapping(matrix.get("between_readers")).items()):
        rows = tuple(
            (
                Cell(read_text(row.get("from"))),
                Cell(read_text(row.get("to"))),
                Cell("EXACT", tone="exact")
                if row.get("exact") is True
                else estimate_cell(row.get("mean_abs")),
                estimate_cell(row.get("max_abs")),
                estimate_cell(row.get("identical_fraction"), fmt.percent),
            )
            for row in read_rows(raw)
        )
        columns = (
            Column("Reader", numeric=False),
            Column("Other reader", numeric=False),
            Column("Mean |difference| (nats)"),
            Column("Largest (nats)", rank=2),
            Column("Equal tokens", rank=2),
        )
        caption = f"Readers among themselves, on what {fmt.clean(source)} sampled"
        tables.append(Table(f"matrix-readers-{number}", caption, columns, rows, collapsed=len(rows) > 12))
    return tables
