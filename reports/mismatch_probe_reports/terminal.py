"""The terminal summary: verdict first, then what to do about it, in any width and with or without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mismatch_probe_reports.model import Finding, Report, build_report
from mismatch_probe_reports.reading import Json
from mismatch_probe_reports.tables import Cell, Section, Table, reasons

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

STYLES = {"pass": "green", "fail": "red", "warn": "yellow", "info": "cyan", "exact": "cyan", "muted": "dim"}
NARROW, COMMON = 80, 125
# Columns of the terminal for a column of words at least, and between two columns at most.
_LEAST_WORDS, _BETWEEN = 7, 3
# Parts with a table on the terminal; the page has all of them.
SECTION_TABLES = {"legs": ("steps",), "weights": ("methods-main",)}


def render_terminal(result: Json, console: Console) -> None:
    """Print a summary of a result.

    Strings of the result are printed as they are, without markup, control characters or escapes; colour and width
    are the console's.

    Args:
        result: result.json as a mapping.
        console: Where to print.
    """
    report = build_report(result)
    for item in _summary(report, console.width):
        console.print(item, highlight=False)


def render_terminal_parts(result: Json, parts: Sequence[str], console: Console) -> None:
    """Print some parts of a report with all their tables.

    Args:
        result: result.json as a mapping; only what these parts are made from need be there.
        parts: Names of sections.
        console: Where to print.
    """
    report = build_report(result)
    for name in parts:
        print_section(report.section(name), console)


def print_section(section: Section, console: Console) -> None:
    """Print a section with all its tables.

    Args:
        section: What to print.
        console: Where to print.
    """
    from rich.text import Text

    items: list[RenderableType] = _line(section) if section.missing else [_heading(section.title)]
    if section.lead and not section.missing:
        items.append(Text(section.lead))
    for table in section.brief or section.tables:
        items += [Text(""), *_table(table.caption, table, console.width)]
    items += [Text(note, "dim") for note in section.notes]
    for item in [*items, Text("")]:
        console.print(item, highlight=False)


def _summary(report: Report, width: int) -> list[RenderableType]:
    from rich.text import Text

    verdict = verdict_line(report.verdict, report.tone, report.sentence)
    items: list[RenderableType] = [verdict, Text(report.subject, "dim"), Text("")]
    items += _findings(report, width)
    items += _section(report.section("legs"), width)
    items += _key_numbers(report, width)
    items += _section(report.section("weights"), width)
    for name in ("routing", "causes", "validity"):
        items += _line(report.section(name))
    return items + _recommendation(report.section("recommendation"))


def verdict_line(verdict: str, tone: str, sentence: str) -> Text:
    """The verdict in its colour, and the sentence."""
    from rich.text import Text

    style = STYLES.get(tone, "")
    return Text.assemble((f" {verdict} ", f"bold reverse {style}".strip()), "  ", (sentence, "bold"))


def _findings(report: Report, width: int) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    if not report.findings:
        return [Text("No findings."), Text("")]
    if width >= NARROW:
        return [_findings_table(report.findings, width), Text("")]
    items: list[RenderableType] = [_heading("Findings")]
    for finding in report.findings:
        style = STYLES.get(finding.tone, "")
        items.append(
            Text.assemble((finding.code, "bold"), " ", (finding.severity, style), " ", finding.title)
        )
        numbers = [
            ("observed", finding.observed),
            ("bar", finding.bar),
            ("would pass at", finding.would_pass_at),
        ]
        stated = [f"{name} {cell.text}" for name, cell in numbers if cell.text != "-"]
        for line in (", ".join(stated), finding.advice):
            if line:
                items.append(Padding(Text(line, "dim"), (0, 0, 0, 2)))
    return [*items, Text("")]


def _findings_table(findings: Sequence[Finding], width: int) -> RenderableType:
    from rich.text import Text

    table = _new_table("Findings", width)
    for title in ("Code", "Severity", "Finding"):
        table.add_column(title, overflow="fold")
    for title in ("Observed", "Bar", "Passes at"):
        table.add_column(title, justify="right", overflow="fold")
    for finding in findings:
        said = Text(finding.title)
        if finding.advice:
            said.append(f"\n{finding.advice}", "dim")
        table.add_row(
            Text(finding.code, "bold"),
            Text(finding.severity, STYLES.get(finding.tone, "")),
            said,
            *(Text(cell.text) for cell in (finding.observed, finding.bar, finding.would_pass_at)),
        )
    return table


def _section(section: Section, width: int) -> list[RenderableType]:
    from rich.text import Text

    if section.missing:
        return _line(section)
    items: list[RenderableType] = []
    for table in section.brief or section.tables:
        if table.name in SECTION_TABLES[section.name]:
            items += _table(section.title, table, width)
    if section.lead:
        items.append(Text(section.lead))
    return [*items, Text("")]


def _table(title: str, table: Table, width: int) -> list[RenderableType]:
    from rich.text import Text

    rank = 1 if width < NARROW else 2 if width < COMMON else 3
    shown = [index for index, column in enumerate(table.columns) if column.rank <= rank]
    drawn = _new_table(title, width)
    longest = {i: _longest_word([row[i] for row in table.rows]) for i in shown if table.columns[i].numeric}
    words = len(shown) - len(longest)
    # Where not even the numbers fit they are folded; rich would cut what stands on the right.
    fits = sum(longest.values()) + _LEAST_WORDS * words + _BETWEEN * len(shown) <= width
    for index in shown:
        column = table.columns[index]
        drawn.add_column(
            Text(column.title),
            justify="right" if column.numeric else "left",
            overflow="fold",
            # Words may be broken on a narrow terminal, numbers not: another number would be read.
            min_width=longest.get(index) if fits else None,
        )
    for row in table.rows:
        drawn.add_row(*(_cell(row[index], stacked=True) for index in shown))
    below = [note for note in (table.note, *(f"{reason}" for reason in reasons(table, shown))) if note]
    return [drawn, *(Text(note, "dim") for note in below)]


def _longest_word(cells: Sequence[Cell]) -> int:
    return max((len(word) for cell in cells for word in f"{cell.text} {cell.detail}".split()), default=0)


def _cell(cell: Cell, *, stacked: bool) -> Text:
    from rich.text import Text

    text = Text(cell.text, STYLES.get(cell.tone, ""))
    if cell.detail:
        text.append(("\n" if stacked else " ") + cell.detail, "dim")
    return text


def _key_numbers(report: Report, width: int) -> list[RenderableType]:
    from rich.text import Text

    table = _new_table("Key numbers", width)
    table.add_column("Quantity", overflow="fold")
    values = [number.cell for number in report.key_numbers]
    table.add_column("Value", justify="right", overflow="fold", min_width=_longest_word(values))
    table.add_column("", overflow="fold")
    for number in report.key_numbers:
        # A reason takes the place of the hint: the reader of a gap wants to know why before what.
        beside = number.cell.reason or number.hint
        table.add_row(Text(number.label), _cell(number.cell, stacked=width < NARROW), Text(beside, "dim"))
    return [table, Text("")]


def _line(section: Section) -> list[RenderableType]:
    from rich.text import Text

    if section.missing:
        return [Text.assemble((section.title, "bold"), ": not available: ", section.missing)]
    return [Text.assemble((section.title, "bold"), ": ", section.lead)] if section.lead else []


def _recommendation(section: Section) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    if section.missing:
        return [Text(""), *_line(section)]
    items: list[RenderableType] = [Text(""), Text.assemble(("Recommendation", "bold"), ": ", section.lead)]
    for table in section.tables:
        if table.name not in ("actions", "settings"):
            continue
        for row in table.rows:
            if table.name == "actions":
                rank, action, because = (cell.text for cell in row[:3])
                line = Text.assemble(
                    (f"{rank}. ", "bold"), action, (f" ({because})" if because else "", "dim")
                )
            else:
                line = Text.assemble((f"{row[0].text}: ", "dim"), row[1].text)
            items.append(Padding(line, (0, 0, 0, 2)))
    return items


def _heading(title: str) -> Text:
    from rich.text import Text

    return Text(title, "bold")


def _new_table(title: str, width: int) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    return RichTable(
        title=_heading(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1) if width >= NARROW else (0, 1, 0, 0),
        show_edge=False,
    )
