"""Views of a result: one HTML page, PNG figures, a terminal summary and Markdown.

Each is made from result.json alone and may be made again at any time.
"""

from mismatch_probe_reports.markdown import render_markdown
from mismatch_probe_reports.png import write_figures
from mismatch_probe_reports.terminal import render_terminal
from mismatch_probe_reports.write import ReportFiles, write_report

__all__ = ["ReportFiles", "render_markdown", "render_terminal", "write_figures", "write_report"]
