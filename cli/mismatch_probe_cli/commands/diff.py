"""`diff`: two measured runs against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ResultFormat, ResultFormatOption


def diff(
    first: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_A", help="A run directory, or a result.json.", autocompletion=completion.runs
        ),
    ],
    second: Annotated[
        Path,
        typer.Argument(metavar="RUN_B", help="The run to compare with it.", autocompletion=completion.runs),
    ],
    fail_on_worse: Annotated[
        bool, typer.Option("--fail-on-worse", help="End with status 1 where RUN_B is worse beyond noise.")
    ] = False,
    output_format: ResultFormatOption = ResultFormat.text,
) -> None:
    """Says what changed from one measured run to another, and whether it is more than noise.

    Runs of the same prompts are paired by prompt, others are compared as they are; no engine runs. New and gone findings,
    settings and versions that differ are listed. Status 0, or 3 when nothing can be concluded.

    **Examples**

    `mismatch-probe diff runs/first runs/second`

    `mismatch-probe diff runs/first runs/second --fail-on-worse --format markdown`
    """
    from mismatch_probe.errors import EXIT_DRIFT, EXIT_INCONCLUSIVE, EXIT_PASS
    from mismatch_probe.stages.comparison import compare_runs
    from mismatch_probe_cli.console import stdout
    from mismatch_probe_reports.comparison import (
        comparison_annotations,
        render_comparison_markdown,
        render_comparison_terminal,
    )
    from mismatch_probe_reports.github import write_job_summary

    comparison = compare_runs(first, second)
    if output_format is ResultFormat.json:
        typer.echo(json.dumps(comparison, indent=1, ensure_ascii=False))
    elif output_format is ResultFormat.markdown:
        typer.echo(render_comparison_markdown(comparison))
    elif output_format is ResultFormat.github:
        typer.echo("\n".join(comparison_annotations(comparison)))
        write_job_summary(render_comparison_markdown(comparison))
    else:
        render_comparison_terminal(comparison, stdout())
    if comparison["outcome"] == "unknown":
        raise typer.Exit(EXIT_INCONCLUSIVE)
    raise typer.Exit(
        EXIT_DRIFT if fail_on_worse and comparison["outcome"] in ("worse", "mixed") else EXIT_PASS
    )
