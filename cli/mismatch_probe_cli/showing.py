"""Writing the views of a result, and showing one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from mismatch_probe_cli.console import clean, stderr, stdout
from mismatch_probe_cli.options import Format, Redaction, ResultFormat

if TYPE_CHECKING:
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_reports import ReportFiles


def write_reports(
    run: RunDirectory, result: dict[str, Any], redact: Redaction | None = None, *, draw: bool = True
) -> ReportFiles | None:
    """Writes report.html and figures/*.png.

    Args:
        run: A measured run.
        result: Its result.
        redact: What the token explorer keeps to itself; None: what was last said of this run. A later verb that
            writes the report again does not bring back what was redacted.
        draw: False writes nothing, and returns None; what is said of redaction is kept for the report that is drawn later.
    """
    from mismatch_probe.stages.token_explorer import explorer_section
    from mismatch_probe_reports import write_report

    if redact is not None:
        with run.edit_manifest() as manifest:
            manifest["redact"] = redact.value
    if not draw:
        return None
    kept = run.read_manifest().get("redact", Redaction.none.value)
    return write_report(result, run.path, explorer_section(run, kept))


def show_result(
    result: dict[str, Any], run: RunDirectory, files: ReportFiles | None, output_format: ResultFormat
) -> None:
    """Prints a result to stdout and says on stderr where the report is."""
    if output_format is ResultFormat.json:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
    elif output_format is ResultFormat.markdown:
        from mismatch_probe_reports import render_markdown

        typer.echo(render_markdown(result))
    elif output_format is ResultFormat.github:
        from mismatch_probe_reports import render_markdown
        from mismatch_probe_reports.github import result_annotations, write_job_summary

        typer.echo("\n".join(result_annotations(result)))
        write_job_summary(render_markdown(result))
    else:
        from mismatch_probe_reports import render_terminal

        render_terminal(result, stdout())
    _say_where(run, files, output_format)


def show_part(
    result: dict[str, Any],
    run: RunDirectory,
    files: ReportFiles | None,
    output_format: Format,
    *,
    parts: tuple[str, ...],
    content: Any,
) -> None:
    """Prints some parts of a report to stdout, or as JSON what they were made from; says where the report is.

    Args:
        result: What the parts are made from.
        run: The run.
        files: What was written, or None.
        output_format: How to print.
        parts: Names of sections of the report.
        content: What to print as JSON.
    """
    if output_format is Format.json:
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    elif output_format is Format.markdown:
        from mismatch_probe_reports import render_markdown_parts

        typer.echo(render_markdown_parts(result, parts))
    else:
        from mismatch_probe_reports import render_terminal_parts

        render_terminal_parts(result, parts, stdout())
    _say_where(run, files, output_format)


def _say_where(run: RunDirectory, files: ReportFiles | None, output_format: Format | ResultFormat) -> None:
    if files is not None:
        for reason in files.skipped:
            notes = stderr()
            notes.print(f"[dim]{clean(str(reason))}[/]", soft_wrap=not notes.is_terminal)
        console = stdout() if output_format == "text" else stderr()
        console.print(f"report: {clean(str(run.report_path))}", soft_wrap=True)
