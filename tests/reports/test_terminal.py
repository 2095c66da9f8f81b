"""The terminal summary: complete, within its width, without colour where there is no terminal, harmless."""

import io
import re

import pytest
from reports.sample import HOSTILE, SAMPLES, Result
from rich.cells import cell_len
from rich.console import Console

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports import render_terminal
from mismatch_probe_reports.model import build_report
from mismatch_probe_reports.sections.weights import MAIN
from mismatch_probe_reports.terminal import SECTION_TABLES


def rendered(result: Result, width: int, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=terminal, color_system="truecolor" if terminal else None
    )
    render_terminal(result, console)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    lines = rendered(SAMPLES[name](), width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    assert lines[0].startswith(f" {SAMPLES[name]()['verdict'].upper()} ")


@pytest.mark.parametrize("width", [60, 160])
@pytest.mark.parametrize("name", ["drifting", "dense", "exact", "inconclusive", "huge"])
def test_findings_steps_and_methods_are_there(name: str, width: int) -> None:
    result = SAMPLES[name]()
    text = rendered(result, width)
    for finding in result["findings"]:
        assert finding["code"] in text
    main = [name for name in result["weights"] if name in MAIN]
    for name in main:
        assert result["weights"][name]["label"].split()[0] in text
    if len(result["weights"]) > len(main):
        assert "in report.html" in text
    words = " ".join(text.split())
    assert result["recommendation"]["summary"].split(".")[0] in words
    assert "k-hat" in words and "ESS" in words
    if result["token"]["exact"]:
        assert "EXACT" in words


def test_no_escape_without_a_terminal_and_colour_with_one() -> None:
    assert "\x1b" not in rendered(SAMPLES["drifting"](), 100)
    assert "\x1b[" in rendered(SAMPLES["drifting"](), 100, terminal=True)


def test_hostile_strings_neither_style_nor_move_the_cursor() -> None:
    text = rendered(SAMPLES["hostile"](), 160)
    assert not re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "[bold]$x^2$[/bold]" in text, "rich markup stays text"
    assert fmt.clean(HOSTILE)[:30] in text


def test_missing_parts_say_why() -> None:
    words = " ".join(rendered(SAMPLES["absent"](), 100).split())
    for section in ("legs", "weights", "routing", "recommendation", "data_quality", "token", "sequence"):
        assert f"{section}: the stage was stopped" in words
    assert "not available" in words


@pytest.mark.parametrize("width", [40, 160])
@pytest.mark.parametrize("name", ["drifting", "dense", "exact"])
def test_no_number_is_broken_over_lines(name: str, width: int) -> None:
    result = SAMPLES[name]()
    written = rendered(result, width).split()
    numbers = 0
    for section, shown in SECTION_TABLES.items():
        for table in build_report(result).section(section).tables:
            if table.name in shown:
                for row in table.rows:
                    for cell, column in zip(row, table.columns, strict=True):
                        if column.numeric and column.rank == 1:
                            words = f"{cell.text} {cell.detail}".split()
                            numbers += len(words)
                            assert set(words) <= set(written), (row[0].text, column.title)
    assert numbers > 10
