"""Two runs against each other: what changed and whether it is more than noise."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, look_up, read_mapping, read_number, read_rows, read_text
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TONES = {
    "worse": "fail",
    "better": "pass",
    "mixed": "warn",
    "changed": "info",
    "no_difference": "pass",
    "unknown": "warn",
}
WORDS = {
    "worse": "WORSE", "better": "BETTER", "mixed": "MIXED", "changed": "CHANGED", "no_difference": "NO DIFFERENCE",
    "unknown": "INCONCLUSIVE",
}  # fmt: skip
_BEYOND = {"yes": "yes", "no": "no", "unknown": "unknown"}
_MARK = {"new": "fail", "gone": "pass", "changed": "warn"}


def comparison_section(comparison: Json) -> Section:
    """Return the whole comparison as a section.

    Args:
        comparison: What `compare_runs` of the core returned.
    """
    tables = (_metrics(comparison), _findings(comparison), _settings(comparison), _untested(comparison))
    pairing = read_mapping(comparison.get("pairing"))
    return Section(
        name="comparison",
        title="Two runs",
        lead=f"{_run(comparison, 'first')} against {_run(comparison, 'second')}. {read_text(pairing.get('sentence'))}",
        tables=tuple(table for table in tables if table.rows),
        notes=(_level(comparison),),
    )


def _level(comparison: Json) -> str:
    tested = sum(
        read_text(row.get("beyond_noise")) != "unknown" for row in read_rows(comparison.get("metrics"))
    )
    if read_text(look_up(comparison, "pairing", "basis")) == "results":
        return "Beyond noise: the 95 % intervals of the two runs do not meet, which is a conservative test."
    return (
        f"Intervals are 95 % and resample prompts. Beyond noise: the interval at the level that Bonferroni asks of {tested} "
        "numbers leaves out no change, so that equal runs show any difference at most once in 20."
    )


def _run(comparison: Json, side: str) -> str:
    run = read_mapping(comparison.get(side))
    tokens = read_number(run.get("num_tokens")).value
    counted = "" if tokens is None else f", {fmt.integer(tokens)} tokens"
    return f"{fmt.clean(run.get('path', side))} ({read_text(run.get('verdict'))}{counted})"


def _metrics(comparison: Json) -> Table:
    rows = []
    for row in read_rows(comparison.get("metrics")):
        beyond, worse = read_text(row.get("beyond_noise")), row.get("worse")
        tone = {True: "fail", False: "pass"}.get(worse) if isinstance(worse, bool) else None
        told = {True: "yes: worse", False: "yes: better"}.get(worse) if isinstance(worse, bool) else None
        unit = read_text(row.get("unit"))
        rows.append(
            (
                Cell(read_text(row.get("label"))),
                *(_plain(row.get(side), unit) for side in ("first", "second")),
                estimate_cell(row["ratio"], fmt.times) if row.get("ratio") else _signed(row.get("change")),
                Cell(told or _BEYOND.get(beyond, beyond), tone=tone or ("info" if beyond == "yes" else "muted"),
                     reason=read_text(row.get("reason"))),
            )
        )  # fmt: skip
    columns = (
        Column("Number", numeric=False),
        Column("First"),
        Column("Second"),
        Column("Change"),
        Column("Beyond noise", numeric=False),
    )
    return Table("comparison-metrics", "What was measured on both", columns, tuple(rows))


def _plain(value: object, unit: str) -> Cell:
    number = read_number(value)
    return Cell("-", tone="muted") if number.value is None else Cell(fmt.with_unit(number.value, unit))


def _signed(change: object) -> Cell:
    """A difference with its sign, where a ratio means nothing."""
    return estimate_cell(change, lambda value: f"{'+' if value > 0 else ''}{fmt.number(value)}")


def _findings(comparison: Json) -> Table:
    rows = tuple(
        (
            Cell(read_text(row.get("change")), tone=_MARK.get(read_text(row.get("change")), "")),
            Cell(read_text(row.get("code"))),
            Cell(read_text(row.get("severity"))),
            Cell(fmt.clean(row.get("detail", ""))),
        )
        for row in read_rows(comparison.get("findings"))
    )
    columns = (
        Column("Change", numeric=False),
        Column("Code", numeric=False),
        Column("Severity", numeric=False, rank=2),
        Column("What it says", numeric=False),
    )
    return Table("comparison-findings", "Findings that are new, gone or changed", columns, rows)


def _settings(comparison: Json) -> Table:
    rows = tuple(
        (
            Cell(fmt.clean(row.get("key", ""))),
            Cell(fmt.scalar(row.get("first"))),
            Cell(fmt.scalar(row.get("second"))),
        )
        for row in read_rows(comparison.get("settings"))
    )
    columns = (
        Column("Setting", numeric=False),
        Column("First", numeric=False),
        Column("Second", numeric=False),
    )
    return Table("comparison-settings", "Configuration, engines and versions that differ", columns, rows)


def _untested(comparison: Json) -> Table:
    rows = tuple(
        (
            Cell(read_text(row.get("label"))),
            *(_plain(row.get(side), "") for side in ("first", "second")),
            Cell(read_text(row.get("reason")), tone="muted"),
        )
        for row in read_rows(comparison.get("untested"))
    )
    columns = (
        Column("Number", numeric=False),
        Column("First"),
        Column("Second"),
        Column("Why no test", numeric=False),
    )
    return Table("comparison-untested", "Shown without a test", columns, rows)
