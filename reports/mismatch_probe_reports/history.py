"""Views of a history of runs: page, PNG, terminal, Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mismatch_probe import __version__
from mismatch_probe_reports.figures import history as figure
from mismatch_probe_reports.figures.canvas import Plot, to_png
from mismatch_probe_reports.html import render_section_page
from mismatch_probe_reports.markdown import section_markdown
from mismatch_probe_reports.png import write_bytes
from mismatch_probe_reports.reading import Json, read_rows, read_text
from mismatch_probe_reports.sections.history import history_section
from mismatch_probe_reports.terminal import print_section

_MARK = b"Mismatch Probe"

if TYPE_CHECKING:
    from rich.console import Console


def foreign_files(directory: Path) -> list[Path]:
    """Files that `write_history` would replace and that it did not write."""
    page, picture = directory / "history.html", directory / "history.png"
    ours = page.is_file() and _MARK in page.read_bytes()[:4000]
    return [path for path in (page, picture) if path.exists() and not ours]


def write_history(history: Json, directory: Path, command: str) -> Path:
    """Write history.html and history.png; return the page.

    Args:
        history: What `read_history` of the core returned.
        directory: Where to.
        command: The command line, for the foot of the page.

    Raises:
        OSError: The directory cannot be written to.
    """
    drawn = figure.prepare(history)
    rows = read_rows(history.get("rows"))
    record = {
        "run_id": f"{len(rows)} runs",
        "created_at": f"last of {read_text(rows[-1].get('created_at')) if rows else 'none'}",
        "tool_version": __version__,
        "command": command,
    }
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "history.html"
    subject = ", ".join(dict.fromkeys(read_text(row.get("model")) for row in rows))
    write_bytes(page, render_section_page(history_section(history), subject, [drawn], record).encode("utf-8"))
    picture = directory / "history.png"
    if isinstance(drawn, Plot):
        write_bytes(picture, to_png(drawn))
    else:
        picture.unlink(missing_ok=True)
    return page


def render_history_terminal(history: Json, console: Console) -> None:
    """Print the history with all its tables."""
    print_section(history_section(history), console)


def render_history_markdown(history: Json) -> str:
    """Return the history in Markdown."""
    return section_markdown(history_section(history))
