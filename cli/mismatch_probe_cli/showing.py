"""Writing the views of a result, and showing one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from mismatch_probe_cli.console import clean, stderr, stdout
from mismatch_probe_cli.options import Format

if TYPE_CHECKING:
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_reports import ReportFiles


def write_reports(run: RunDirectory, result: dict[str, Any]) -> ReportFiles:
    """Writes report.html and figures/*.png."""
    from mismatch_probe_reports import write_report

    return write_report(result, run.path)


def show_result(
    result: dict[str, Any], run: RunDirectory, files: ReportFiles | None, output_format: Format
) -> None:
    """Prints a result to stdout and says on stderr where the report is."""
    if output_format is Format.json:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
    elif output_format is Format.markdown:
        from mismatch_probe_reports import render_markdown

        typer.echo(render_markdown(result))
    else:
        from mismatch_probe_reports import render_terminal

        render_terminal(result, stdout())
    if files is not None:
        for reason in files.skipped:
            stderr().print(f"[dim]{clean(str(reason))}[/]", soft_wrap=True)
        console = stdout() if output_format is Format.text else stderr()
        console.print(f"report: {clean(str(run.report_path))}", soft_wrap=True)
