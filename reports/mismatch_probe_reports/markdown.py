"""Markdown for comments of a CI job: verdict, findings, legs, weights, recommendation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mismatch_probe_reports.model import Report, build_report
from mismatch_probe_reports.reading import Json
from mismatch_probe_reports.tables import Cell, Section, Table, reasons

MARKS = {"pass": "✅", "fail": "❌", "warn": "⚠️", "info": "ℹ️"}
WIDEST_RANK = 2
_SPECIAL = re.compile(r"([\\`*_\[\]#!|~$])")


def render_markdown(result: Json) -> str:
    """Return a summary in GitHub-flavoured Markdown; strings of the result are escaped.

    Args:
        result: result.json as a mapping.
    """
    report = build_report(result)
    blocks = [verdict_heading(report.verdict, report.tone, report.sentence)]
    blocks += [_text(report.subject), *_findings(report)]
    blocks += _section(report.section("legs"), ("steps",))
    blocks += _key_numbers(report)
    blocks += _section(report.section("weights"), ("methods-main",))
    blocks += _section(report.section("routing"), ())
    blocks += _section(report.section("causes"), ("causes-named",))
    blocks += _section(report.section("validity"), ())
    blocks += _section(report.section("recommendation"), ("actions", "settings"))
    blocks.append(f"<sub>{_text(report.command)}, mismatch-probe {_text(report.tool_version)}</sub>")
    return "\n\n".join(block for block in blocks if block) + "\n"


def verdict_heading(verdict: str, tone: str, sentence: str) -> str:
    """Return the heading that says the verdict, and the sentence below it."""
    heading = f"## {MARKS.get(tone, '')} Mismatch Probe: {_text(verdict)}".replace("  ", " ")
    return f"{heading}\n\n**{_text(sentence)}**"


def render_markdown_parts(result: Json, parts: Sequence[str]) -> str:
    """Return some parts of a report with all their tables in Markdown.

    Args:
        result: result.json as a mapping; only what these parts are made from need be there.
        parts: Names of sections.
    """
    report = build_report(result)
    return "\n".join(section_markdown(report.section(name)) for name in parts)


def section_markdown(section: Section) -> str:
    """Return a section with all its tables in Markdown; its strings are escaped."""
    blocks = _section(section, (), notes=True)
    for table in () if section.missing else section.brief or section.tables:
        blocks += [f"**{_text(table.caption)}**", *_table(table), _text(table.note)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _text(text: str) -> str:
    """Escape what Markdown or HTML would read; an at sign would call a user of the forge."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", escaped).replace("@", "&#64;")


def _findings(report: Report) -> list[str]:
    if not report.findings:
        return ["No findings."]
    rows = [
        [
            f"**{_text(finding.code)}**",
            _text(finding.severity),
            _text(finding.title),
            *(_cell(cell) for cell in (finding.observed, finding.bar, finding.would_pass_at)),
            _text(finding.advice),
        ]
        for finding in report.findings
    ]
    heads = ["Code", "Severity", "Finding", "Observed", "Bar", "Would pass at", "What to do"]
    return ["### Findings", _grid(heads, [False, False, False, True, True, True, False], rows)]


def _key_numbers(report: Report) -> list[str]:
    rows = [
        [_text(number.label), _cell(number.cell), _text(number.cell.reason or number.hint)]
        for number in report.key_numbers
    ]
    return ["### Key numbers", _grid(["Quantity", "Value", ""], [False, True, False], rows)]


def _section(section: Section, tables: tuple[str, ...], *, notes: bool = False) -> list[str]:
    blocks = [f"### {_text(section.title)}"]
    if section.missing:
        return [*blocks, f"Not available: {_text(section.missing)}"]
    blocks.append(_text(section.lead))
    for table in section.brief or section.tables:
        if table.name in tables:
            blocks += _table(table)
    return [*blocks, *(_text(note) for note in section.notes if notes)]


def _table(table: Table) -> list[str]:
    shown = [index for index, column in enumerate(table.columns) if column.rank <= WIDEST_RANK]
    columns = [table.columns[index] for index in shown]
    rows = [[_cell(row[index]) for index in shown] for row in table.rows]
    grid = _grid([_text(column.title) for column in columns], [column.numeric for column in columns], rows)
    return [grid, *(f"*{_text(reason)}*" for reason in reasons(table, shown))]


def _grid(heads: list[str], numeric: list[bool], rows: list[list[str]]) -> str:
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *rows))


def _cell(cell: Cell) -> str:
    return _text(cell.text) + (f" {_text(cell.detail)}" if cell.detail else "")
