"""How `methods`, `engines` and `explain` print a list: tables on a terminal or as Markdown, a line an entry into a pipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from mismatch_probe_cli.console import clean, stdout
from mismatch_probe_cli.options import Format

if TYPE_CHECKING:
    from mismatch_probe_reports.tables import Column, Section

# Headings of the hundreds that codes are numbered by; MP1xx to MP5xx as in `mismatch_probe.findings`.
HUNDREDS = {
    "MP1": "Data and alignment",
    "MP2": "Token drift",
    "MP3": "Sequences and tails",
    "MP4": "Routing",
    "MP5": "Weights",
    "MP6": "Causes",
    "MP9": "The tool itself",
}


def room(output_format: Format) -> int | None:
    """Width of the terminal that a table is for; None where it is for none."""
    console = stdout()
    return console.width if output_format is Format.text and console.is_terminal else None


def show(section: Section, lines: Sequence[str], content: Any, output_format: Format) -> None:
    """Prints a list: tables on a terminal and as Markdown, `lines` into a pipe, `content` as JSON."""
    if output_format is Format.json:
        typer.echo(json.dumps(content, indent=1))
        return
    if output_format is Format.markdown:
        from mismatch_probe_reports.markdown import section_markdown

        typer.echo(section_markdown(section))
    elif (console := stdout()).is_terminal:
        from mismatch_probe_reports.terminal import print_section

        print_section(section, console)
    else:
        for line in lines:
            console.print(clean(line), soft_wrap=True)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """One line for each row, its columns below each other; the last is as long as it is."""
    widths = [max((len(row[index]) for row in rows), default=0) for index in range(len(rows[0]) - 1)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]


def titles_section(title: str, groups: Sequence[tuple[str, dict[str, str]]]) -> Section:
    """Codes with their titles, a table for each group."""
    from mismatch_probe_reports.tables import Cell, Section, Table

    columns = (words("Code"), words("What it is"))
    tables = tuple(
        Table(heading, heading, columns, tuple((Cell(code, code=True), Cell(text)) for code, text in held.items()))
        for heading, held in groups
    )  # fmt: skip
    return Section("codes", title, tables=tables, notes=("mismatch-probe explain CODE says what to do.",))


def words(title: str, *, rank: int = 1) -> Column:
    """A column of text, shown from a rank of terminal on."""
    from mismatch_probe_reports.tables import Column

    return Column(title, numeric=False, rank=rank)
