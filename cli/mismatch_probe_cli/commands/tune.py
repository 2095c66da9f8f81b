"""`tune`: hyperparameters of a correction, fitted to a run."""

from __future__ import annotations

from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import Format, FormatOption, RunArgument

Number = float | None


def tune(
    run_path: RunArgument,
    method: Annotated[
        str,
        typer.Option(
            "--method", metavar="NAME", help="Correction to tune.", autocompletion=completion.methods
        ),
    ],
    budget: Annotated[
        Number, typer.Option(metavar="C", help="vespo: mean weight E_Q[W] that is allowed, both signs.")
    ] = None,
    alpha_pos: Annotated[Number, typer.Option(help="vespo: power for A > 0; default 2.")] = None,
    alpha_neg: Annotated[Number, typer.Option(help="vespo: power for A < 0; default 3.")] = None,
    budget_pos: Annotated[Number, typer.Option(metavar="C", help="vespo: budget for A > 0.")] = None,
    budget_neg: Annotated[Number, typer.Option(metavar="C", help="vespo: budget for A < 0.")] = None,
    keep: Annotated[Number, typer.Option(help="Others: share of tokens to keep; default 0.99.")] = None,
    ess: Annotated[Number, typer.Option(help="Methods with a cap: effective size to reach.")] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Fits the hyperparameters of a correction to a run, and judges them on prompts that did not tune them.

    Writes tuning/METHOD.json and, where the run was measured, adds the fit to result.json and the report.

    **Examples**

    `mismatch-probe tune runs/first --method vespo --budget 1`

    `mismatch-probe tune runs/first --method geo_rs --keep 0.99`

    `mismatch-probe tune runs/first --method seq_tis --ess 0.5 --format json`
    """
    from mismatch_probe.result import read_result
    from mismatch_probe.stages.tuning import tune_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_part, write_reports

    run = RunDirectory.open_existing(run_path)
    files = None
    with ProgressWatcher() as watcher, run.claim(resume=True):
        watcher.message(f"fitting {method}")
        fitted = tune_run(
            run,
            method,
            budget=budget,
            alpha_pos=alpha_pos,
            alpha_neg=alpha_neg,
            budget_pos=budget_pos,
            budget_neg=budget_neg,
            keep=keep,
            ess=ess,
        )
        if run.result_path.is_file():
            files = write_reports(run, read_result(run.result_path))
    only = {"tuning": {method: fitted}}
    show_part(only, run, files, output_format, parts=("tuning",), content=fitted)
