"""`recommend`: what to do about a measured drift, for a goal."""

from __future__ import annotations

from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import Format, FormatOption, RunArgument


def recommend(
    run_path: RunArgument,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="NAME",
            help="What the correction is to serve: stability, signal or throughput; default the run's, stability.",
            autocompletion=completion.goals,
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Says what to do about a measured drift, in order, with what each step does to this run.

    Engine fixes come first, then the correction with its hyperparameters and what comes next to it, then what to watch
    during training. Everything is worked out from the run's own tokens and written into result.json and the report; `export`
    follows it. An ablation that was made since the run was measured is taken into account. A run that failed validity gets
    no correction.

    **Examples**

    `mismatch-probe recommend runs/first`

    `mismatch-probe recommend runs/first --goal signal --format json`
    """
    from mismatch_probe.stages.recommendation import recommend_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_part, write_reports

    run = RunDirectory.open_existing(run_path)
    with ProgressWatcher() as watcher, run.claim(resume=True):
        watcher.message("weighing corrections")
        result = recommend_run(run, goal=goal)
        files = write_reports(run, result)
    section = result["recommendation"]
    show_part(
        {"recommendation": section, "weights": result.get("weights")},
        run,
        files,
        output_format,
        parts=("recommendation",),
        content=section,
    )
