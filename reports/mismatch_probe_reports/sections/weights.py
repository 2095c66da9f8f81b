"""Weights: what each correction would do with this run's drift."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.buckets import bucket_range
from mismatch_probe_reports.sections.sequence import k_hat_cell
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TITLE = "Weights: what each correction would do"
METHOD_COLUMNS = (
    Column("Method", numeric=False),
    Column("Parameters", numeric=False, rank=4),
    Column("Level", numeric=False, rank=3),
    Column("Mean phi", rank=2, help="Average coefficient on A grad log pi; 1 changes nothing"),
    Column("ESS", help="Effective share of the sample after weighting; read with k-hat"),
    Column("Kept", help="Share of tokens that still give a gradient"),
    Column("Mean phi, A > 0", rank=2),
    Column("Mean phi, A < 0", rank=2),
    Column("Mass ratio", rank=3, help="Negative over positive mass: 1 keeps the balance of the two"),
    Column(
        "Gradient left", rank=4, help="Mean of |A| phi over mean |A|: what is left of the gradient's size"
    ),
)


def method_label(name: str, method: Json) -> str:
    """Return the label of a method, or its registered name."""
    return read_text(method.get("label"), fmt.clean(name))


def build_weights(result: Json) -> Section:
    """Return the table of methods and the response by length."""
    weights = result.get("weights")
    if reason := why_absent(weights):
        return Section("weights", TITLE, missing=reason)
    weights = read_mapping(weights)
    methods = {str(name): read_mapping(raw) for name, raw in read_mapping(weights.get("methods")).items()}
    if not methods:
        return Section("weights", TITLE, missing="no method was simulated")
    chosen = read_text(read_mapping(result.get("recommendation")).get("method"))
    rows = tuple(_row(name, method, chosen) for name, method in methods.items())
    k_hat = k_hat_cell(read_mapping(result.get("sequence")))
    tail = f"k-hat of W itself is {k_hat.text}" + (f" ({k_hat.detail})" if k_hat.detail else "")
    note = f"ESS of a clipped or bounded weight is high by construction; {tail}."
    if k_hat.reason:
        note += f" {k_hat.reason}."
    tables = [Table("methods", f"Methods, reading {_reads(weights)}", METHOD_COLUMNS, rows, note=note)]
    by_length = _by_length(methods)
    if by_length is not None:
        tables.append(by_length)
    return Section("weights", TITLE, lead=_lead(methods), tables=tuple(tables), figures=("weights",))


def _reads(weights: Json) -> str:
    return read_text(weights.get("reads"), "the training side against the rollout side")


def _row(name: str, method: Json, chosen: str) -> tuple[Cell, ...]:
    label = method_label(name, method)
    if reason := why_absent(method):
        blank = Cell(fmt.NOT_AVAILABLE, reason=reason, tone="muted")
        return (Cell(label), Cell(""), Cell(""), blank, *(Cell(""),) * 6)
    recommended = name == chosen
    return (
        Cell(f"{label} (recommended)" if recommended else label, tone="pass" if recommended else ""),
        Cell(fmt.scalar(read_mapping(method.get("parameters")))),
        Cell(read_text(method.get("level"))),
        estimate_cell(pick(method, "mean"), fmt.near_one),
        estimate_cell(pick(method, "ess"), fmt.percent),
        estimate_cell(pick(method, "kept_fraction"), fmt.percent),
        estimate_cell(pick(method, "positive_mass"), fmt.near_one),
        estimate_cell(pick(method, "negative_mass"), fmt.near_one),
        estimate_cell(pick(method, "mass_ratio"), fmt.near_one),
        estimate_cell(pick(method, "gradient_mass"), fmt.near_one),
    )


def _lead(methods: dict[str, Json]) -> str:
    kept = []
    for name, method in methods.items():
        value = read_number(method.get("kept_fraction")).value
        if value is not None:
            kept.append((value, method_label(name, method)))
    if not kept:
        return "What share of tokens each method keeps cannot be had; the table gives the reasons."
    low, worst = min(kept)
    if low > 0.999:
        return f"All {len(kept)} methods keep practically every token at this drift."
    return (
        f"The strictest method here, {worst}, still takes a gradient from {fmt.percent(low)} of the tokens."
    )


def _by_length(methods: dict[str, Json]) -> Table | None:
    """Return mean phi by response length, one column a length bucket, or None where no method has it."""
    ranges: dict[str, None] = {}
    values: dict[str, dict[str, Cell]] = {}
    for name, method in methods.items():
        label = method_label(name, method)
        for bucket in read_rows(method.get("by_length")):
            count = read_number(bucket.get("n")).value
            cell = estimate_cell(pick(bucket, "mean"), fmt.near_one)
            detail = "" if count is None else f"n = {fmt.integer(count)}"
            key = bucket_range(bucket)
            ranges.setdefault(key)
            values.setdefault(label, {})[key] = Cell(
                cell.text, detail=detail, reason=cell.reason, tone=cell.tone
            )
    if not ranges:
        return None
    columns = (Column("Method", numeric=False), *(Column(f"{key} tokens") for key in ranges))
    rows = tuple(
        (Cell(label), *(cells.get(key, Cell("-", tone="muted")) for key in ranges))
        for label, cells in values.items()
    )
    return Table("weights-by-length", "Mean phi by response length", columns, rows, collapsed=len(rows) > 12)
