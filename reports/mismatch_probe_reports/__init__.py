"""Views of a result: one HTML page, PNG figures, a terminal summary and Markdown.

Each is made from result.json alone and may be made again at any time.
"""

from mismatch_probe_reports.markdown import render_markdown, render_markdown_parts
from mismatch_probe_reports.png import write_figures
from mismatch_probe_reports.terminal import render_terminal, render_terminal_parts
from mismatch_probe_reports.write import ReportFiles, write_report

__all__ = [
    "ReportFiles",
    "render_markdown",
    "render_markdown_parts",
    "render_terminal",
    "render_terminal_parts",
    "write_figures",
    "write_report",
]
