"""Many runs over the steps of training, as a section."""

from __future__ import annotations

from datetime import UTC, datetime

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.model import VERDICT_TONES
from mismatch_probe_reports.reading import Json, look_up, read_number, read_rows, read_text
from mismatch_probe_reports.sections.sequence import k_hat_cell
from mismatch_probe_reports.tables import Cell, Column, Section, Table, count_cell, estimate_cell

COLUMNS = (
    Column("Step"),
    Column("Run", numeric=False, rank=2),
    Column("Verdict", numeric=False),
    Column("Tokens", rank=3),
    Column("K3 (nats)"),
    Column("Mean |log-ratio|", rank=3),
    Column("k-hat"),
    Column("ESS", rank=3),
    Column("Tokens flipped"),
    Column("Kappa", rank=4),
    Column("Changed since the run before", numeric=False, rank=3),
)


def history_section(history: Json) -> Section:
    """Return the history as a section.

    Args:
        history: What `read_history` of the core returned.
    """
    rows = tuple(_row(row, read_text(history.get("basis"))) for row in read_rows(history.get("rows")))
    tables = [Table("history-runs", "Runs by step", COLUMNS, rows)]
    skipped = tuple(
        (Cell(fmt.clean(row.get("path", ""))), Cell(fmt.clean(row.get("reason", ""))))
        for row in read_rows(history.get("skipped"))
    )
    if skipped:
        columns = (Column("Run", numeric=False), Column("Why", numeric=False))
        tables.append(Table("history-skipped", "Runs that are left out", columns, skipped))
    return Section(
        name="history",
        title="Drift over training",
        lead=read_text(history.get("sentence")),
        tables=tuple(tables),
        figures=("history",),
        notes=(f"Step: {read_text(history.get('basis_meaning'))}. Intervals are 95 %, by prompts.",),
    )


def _row(row: Json, basis: str) -> tuple[Cell, ...]:
    verdict = read_text(row.get("verdict"), "unknown")
    codes = [read_text(code) for code in row.get("findings") or ()]
    changed = [fmt.clean(item.get("key", "")) for item in read_rows(row.get("changed"))]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return (
        Cell(_step(read_number(row.get("step")).value, basis)),
        Cell(fmt.clean(row.get("run", ""))),
        Cell(verdict, detail=", ".join(codes), tone=VERDICT_TONES.get(verdict, "muted")),
        count_cell(row.get("num_tokens")),
        _estimate(row, "k3"),
        _estimate(row, "mean_abs_log_ratio"),
        k_hat_cell({"k_hat": row.get("k_hat")}) if row.get("k_hat") else Cell("-", tone="muted"),
        estimate_cell(row["ess"], fmt.percent) if row.get("ess") else Cell("-", tone="muted"),
        estimate_cell(row["flip_rate"], fmt.percent)
        if look_up(row, "flip_rate")
        else Cell("-", tone="muted"),
        _estimate(row, "kappa"),
        Cell(", ".join(changed[:3]) + more if changed else "-", tone="" if changed else "muted"),
    )


def _estimate(row: Json, key: str) -> Cell:
    return (
        estimate_cell(row[key])
        if row.get(key)
        else Cell("-", reason=read_text(row.get("reason")), tone="muted")
    )


def _step(step: float | None, basis: str) -> str:
    if step is None:
        return "-"
    if basis == "time":
        return datetime.fromtimestamp(step, UTC).strftime("%Y-%m-%d %H:%M")
    return fmt.integer(step)
