"""An audit of several engines: every cell of the matrix, then the matrix itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from mismatch_probe_cli.options import Redaction, ResultFormat, command_line

if TYPE_CHECKING:
    from mismatch_probe.config.model import ProbeConfig
    from mismatch_probe.trace.run_directory import RunDirectory


def audit_matrix(
    run: RunDirectory,
    settings: ProbeConfig,
    *,
    force: bool,
    resume: bool,
    output_format: ResultFormat,
    redact: Redaction | None,
    report: bool = True,
) -> int:
    """Audits a matrix, writes its views and prints it; returns the exit code."""
    from mismatch_probe.stages.matrix import plan_matrix, run_matrix
    from mismatch_probe_cli.console import ProgressWatcher, clean, stdout
    from mismatch_probe_cli.showing import write_reports
    from mismatch_probe_reports.matrix import render_matrix_markdown, render_matrix_terminal, write_matrix

    def finish(cell: RunDirectory, result: dict[str, Any]) -> None:
        write_reports(cell, result, redact, draw=report)

    with ProgressWatcher() as watcher:
        planned = plan_matrix(settings, watcher)
        with run.claim(force=force, resume=resume):
            matrix = run_matrix(
                run, settings, planned, watcher, command=command_line(), resume=resume, finish=finish
            )
            shown = {**matrix, "cells": [{**cell, "report": report} for cell in matrix["cells"]]}
            page = write_matrix(shown, run.path)
    if output_format is ResultFormat.json:
        typer.echo(json.dumps(matrix, indent=1, ensure_ascii=False))
    elif output_format is ResultFormat.markdown:
        typer.echo(render_matrix_markdown(matrix))
    elif output_format is ResultFormat.github:
        from mismatch_probe_reports.github import matrix_annotations, write_job_summary

        typer.echo("\n".join(matrix_annotations(matrix)))
        write_job_summary(render_matrix_markdown(matrix))
    else:
        render_matrix_terminal(matrix, stdout())
        stdout().print(f"report: {clean(str(page))}", soft_wrap=True)
    return int(matrix["exit_code"])
