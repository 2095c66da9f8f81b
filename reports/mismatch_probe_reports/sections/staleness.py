"""Staleness: how far optimiser steps move the policy, and where that was measured."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    pick,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, fact, fact_table

TITLE = "Staleness: how far updates move the policy"
COLUMNS = (
    Column("Steps"),
    Column("KL per token (nats)", help="K3 of pi_k against pi_old on the tokens that mu sampled"),
    Column(
        "K2 in float32", rank=2, help="Half the mean square of log(pi_k / pi_old), which the law is fitted to"
    ),
    Column("Std of log(pi_k / pi_old)", help="Over responses, nats: the staleness factor of log W"),
    Column("... if Gaussian", rank=2, help="Of independent Gaussian tokens at the same KL"),
    Column("Std of log W", help="Over responses, nats: staleness times mismatch"),
    Column("Fitted", numeric=False, rank=3),
)


def build_staleness(result: Json) -> Section:
    """Return the law of growth and the checkpoints that it was fitted to."""
    raw = look_up(result, "simulation", "staleness")
    if raw is None:
        return Section("staleness", TITLE, missing="not simulated; run: mismatch-probe simulate RUN")
    if reason := why_absent(raw):
        return Section("staleness", TITLE, missing=reason)
    staleness = read_mapping(raw)
    facts = [
        fact(
            "KL per step (nats)",
            pick(staleness, "kl_per_step"),
            "KL(pi_old || pi) per token after one update",
        ),
        fact(
            "Growth", pick(staleness, "growth"), "KL grows as steps to this power: 1 wandering, 2 straight on"
        ),
    ]
    if staleness.get("misfit") is not None:
        facts.append(
            fact("Misfit", pick(staleness, "misfit"), "Largest factor between a checkpoint and the law")
        )
    source = f"Source: {read_text(staleness.get('source'), 'not reported')}; drawn: {read_text(staleness.get('drawn'))}."
    tables = [fact_table("staleness-law", "Law of growth", facts, source)]
    rows = tuple(_row(point) for point in read_rows(staleness.get("points")))
    if rows:
        tables.append(Table("staleness-checkpoints", "Checkpoints, on this run's tokens", COLUMNS, rows))
    notes = tuple(read_text(note) for note in read_list(staleness.get("notes")))
    return Section("staleness", TITLE, lead=_lead(staleness), tables=tuple(tables), notes=notes)


def _lead(staleness: Json) -> str:
    step, growth = (read_number(staleness.get(key)).value for key in ("kl_per_step", "growth"))
    if step is None or growth is None:
        return "The law of growth cannot be stated."
    at = step * 8**growth
    return (
        f"One update moves the policy by {fmt.number(step)} nats a token and eight of them by {fmt.number(at)}: "
        f"KL grows with steps to the power {fmt.number(growth)}."
    )


def _row(point: Json) -> tuple[Cell, ...]:
    fitted = point.get("fitted") is True
    return (
        estimate_cell(pick(point, "steps"), fmt.tick),
        estimate_cell(pick(point, "kl")),
        estimate_cell(pick(point, "half_square")),
        estimate_cell(pick(point, "std_log_weight")),
        Cell("-", tone="muted")
        if point.get("gaussian_std") is None
        else estimate_cell(pick(point, "gaussian_std")),
        estimate_cell(pick(point, "std_total")),
        Cell("yes" if fitted else "no", reason="" if fitted else read_text(point.get("reason"))),
    )
