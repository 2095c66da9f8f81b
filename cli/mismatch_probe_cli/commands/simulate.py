"""`simulate`: corrections on a run, beyond its own settings, lengths and staleness."""

from __future__ import annotations

from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import Format, FormatOption, RunArgument


def simulate(
    run_path: RunArgument,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Correction to simulate; may be given several times.",
            autocompletion=completion.methods,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="METHOD:KEY=V1,V2;KEY=...",
            help="Hyperparameters to vary, in all combinations; may be given several times.",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(metavar="T1,T2", help="Lengths of response to try; default: around the longest one."),
    ] = None,
    staleness: Annotated[
        str | None,
        typer.Option(metavar="N1,N2", help="Updates that one rollout batch feeds; default 1 to 64."),
    ] = None,
    sequences: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Responses to make up for each length and staleness; default up to 1024."
        ),
    ] = None,
    staleness_from: Annotated[
        list[str] | None,
        typer.Option(
            "--staleness-from",
            metavar="[STEPS=]CHECKPOINT",
            help="Later checkpoint to measure how far updates move the policy; may be given several times.",
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Simulates corrections on a measured run: other hyperparameters, longer responses, staler weights, ablations.

    Writes the section `simulation` into result.json and renders the report again.

    **Examples**

    `mismatch-probe simulate runs/first`

    `mismatch-probe simulate runs/first --sweep "vespo:k_pos=1,2,3;lambda_pos=2,3,4" --lengths 1024,8192`

    `mismatch-probe simulate runs/first --staleness-from out/step-8 --staleness-from 64=out/last`
    """
    from mismatch_probe.result import read_result
    from mismatch_probe.stages.simulation import simulate_run
    from mismatch_probe.stages.simulation_plan import make_plan
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_part, write_reports

    run = RunDirectory.open_existing(run_path)
    read_result(run.result_path)
    plan = make_plan(
        methods=method or (),
        sweeps=sweep or (),
        lengths=lengths,
        staleness=staleness,
        sequences=sequences,
        checkpoints=staleness_from or (),
    )
    with ProgressWatcher() as watcher, run.claim(resume=True):
        result = simulate_run(run, plan, watcher)
        files = write_reports(run, result)
    parts = ("simulation", "staleness")
    show_part(result, run, files, output_format, parts=parts, content=result["simulation"])
