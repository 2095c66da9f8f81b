"""Views of a gate: terminal, Markdown, JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mismatch_probe.gate import Gate, Held
from mismatch_probe.result import to_json
from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.markdown import section_markdown, verdict_heading
from mismatch_probe_reports.model import VERDICT_TONES
from mismatch_probe_reports.reading import Json, Number
from mismatch_probe_reports.sections.validity import subject
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell
from mismatch_probe_reports.terminal import print_section, verdict_line

if TYPE_CHECKING:
    from rich.console import Console

STATE_TONES = {"pass": "pass", "fail": "fail", "warn": "warn", "note": "info", "skip": "muted"}
COLUMNS = (
    Column("Bar or check", numeric=False),
    Column("Code", numeric=False, rank=2),
    Column("State", numeric=False),
    Column("Observed"),
    Column("Bar"),
    Column("Passes at"),
    Column("n", rank=3),
    Column("Detail", numeric=False, rank=3),
)


def gate_json(gate: Gate) -> dict[str, Any]:
    """The gate as plain JSON: verdict, exit code, sentence, and every bar with its state."""
    return {
        "verdict": gate.name,
        "exit_code": gate.exit_code,
        "sentence": gate.sentence,
        "bars": [
            {
                **to_json(item.outcome),
                "would_pass_at": to_json(item.outcome.would_pass_at),
                "state": item.state,
                "decides": item.decides,
                "named": item.named,
            }
            for item in gate.held
        ],
        "no_say": dict(gate.idle),
    }


def gate_section(gate: Gate, result: Json) -> Section:
    """All bars in one table, those that decide first."""
    order = {"fail": 0, "warn": 1, "note": 2, "pass": 3, "skip": 4}
    held = sorted(gate.held, key=lambda item: (order[item.state], not item.decides))
    table = Table("bars", "Bars and checks", COLUMNS, tuple(_row(item) for item in held), note=_note(gate))
    return Section("gate", "Gate", lead=subject(result), tables=(table,))


def _note(gate: Gate) -> str:
    warned = len(gate.of_state("warn"))
    if not warned:
        return ""
    only = f"{fmt.plural(warned, 'broken bar')} only {'warns' if warned == 1 else 'warn'}"
    return f"{only}: a bar decides when it is named, and under --strict all do."


def _row(item: Held) -> tuple[Cell, ...]:
    outcome, unit = item.outcome, item.outcome.unit
    said = fmt.clean(f"{outcome.name}: {outcome.detail}")
    observed, bar, at = (
        Cell("-", tone="muted", reason="" if key != "observed" or item.state != "skip" else said)
        if value is None
        else estimate_cell(Number(value), lambda number: fmt.with_unit(number, unit))
        for key, value in (
            ("observed", outcome.observed),
            ("bar", outcome.bar),
            ("at", outcome.would_pass_at),
        )
    )
    return (
        Cell(fmt.clean(outcome.name)),
        Cell(outcome.code),
        Cell(item.state, tone=STATE_TONES[item.state]),
        observed,
        bar,
        at,
        Cell("-" if outcome.n is None else fmt.integer(outcome.n)),
        Cell(fmt.clean(outcome.detail)),
    )


def render_gate_terminal(gate: Gate, result: Json, console: Console) -> None:
    """Print the verdict of the gate and all bars."""
    console.print(verdict_line(gate.name.upper(), VERDICT_TONES[gate.name], fmt.clean(gate.sentence)))
    print_section(gate_section(gate, result), console)


def render_gate_markdown(gate: Gate, result: Json) -> str:
    """Return the gate in Markdown."""
    heading = verdict_heading(gate.name.upper(), VERDICT_TONES[gate.name], gate.sentence)
    return f"{heading}\n\n{section_markdown(gate_section(gate, result))}"
