"""The same drift under the names and conventions of training frameworks."""

from __future__ import annotations

from dataclasses import replace

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import NOT_REPORTED, Json, pick, read_rows, read_text
from mismatch_probe_reports.tables import Cell, Column, Table, estimate_cell

UNDEFINED = "it leaves float64, or is not defined for these tokens"


def dashboard_table(token: Json) -> Table:
    """Return every metric that a framework would log for these tokens, grouped by framework.

    Args:
        token: The section `token` of a result.
    """
    metrics: dict[str, list[Json]] = {}
    for item in read_rows(token.get("dashboards")):
        metrics.setdefault(read_text(item.get("framework"), "framework not named"), []).append(item)
    rows = tuple((Cell(framework), *_metric(item)) for framework, items in metrics.items() for item in items)
    columns = (
        Column("Framework", numeric=False),
        Column("Metric", numeric=False),
        Column("Value"),
        Column("Convention", numeric=False),
    )
    note = (
        "t is the training log-probability of a token, s the rollout one, rho = exp(t - s); each number by the "
        "framework's own defaults. They differ in sign, in averaging and in clamping: compare only the same name."
    )
    return Table(
        "dashboards", "The same drift on your dashboard", columns, rows, note, collapsed=True, grouped=True
    )


def _metric(item: Json) -> tuple[Cell, Cell, Cell]:
    value = pick(item, "value")
    if value.value is None and value.reason == NOT_REPORTED and "value" in item:
        value = replace(value, reason=UNDEFINED)
    return (
        Cell(read_text(item.get("name"), "metric without a name"), code=True),
        estimate_cell(value, fmt.near_one),
        Cell(read_text(item.get("convention"), "convention not reported")),
    )
