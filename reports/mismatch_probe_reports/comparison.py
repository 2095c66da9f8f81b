"""Views of a comparison of two runs: terminal, Markdown, annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.github import annotation
from mismatch_probe_reports.markdown import section_markdown, verdict_heading
from mismatch_probe_reports.reading import Json, read_rows, read_text
from mismatch_probe_reports.sections.comparison import TONES, WORDS, comparison_section
from mismatch_probe_reports.terminal import print_section, verdict_line

if TYPE_CHECKING:
    from rich.console import Console

_LEVELS = {"worse": "error", "mixed": "error", "unknown": "warning"}


def render_comparison_terminal(comparison: Json, console: Console) -> None:
    """Print the sentence and all tables."""
    outcome = read_text(comparison.get("outcome"))
    console.print(verdict_line(WORDS[outcome], TONES[outcome], fmt.clean(comparison.get("sentence", ""))))
    print_section(comparison_section(comparison), console)


def render_comparison_markdown(comparison: Json) -> str:
    """Return the comparison in Markdown."""
    outcome = read_text(comparison.get("outcome"))
    heading = verdict_heading(WORDS[outcome], TONES[outcome], read_text(comparison.get("sentence")))
    return f"{heading}\n\n{section_markdown(comparison_section(comparison))}"


def comparison_annotations(comparison: Json) -> list[str]:
    """The sentence and each new finding as annotations of GitHub Actions."""
    outcome = read_text(comparison.get("outcome"))
    lines = [
        annotation(
            _LEVELS.get(outcome, "notice"),
            f"Mismatch Probe diff: {WORDS[outcome]}",
            read_text(comparison.get("sentence")),
        )
    ]
    for row in read_rows(comparison.get("findings")):
        if row.get("change") == "new":
            level = {"error": "error", "warning": "warning"}.get(read_text(row.get("severity")), "notice")
            lines.append(
                annotation(level, f"new: {read_text(row.get('code'))}", read_text(row.get("detail")))
            )
    return lines
