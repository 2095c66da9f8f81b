"""`ablate`: one thing changed at a time, on a run's own tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ForceOption, Format, FormatOption


def ablate(
    run_path: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)
    ] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(
            "--knob",
            metavar="NAME",
            help="Knob to turn; may be given several times. Default: all.",
            autocompletion=completion.knobs,
        ),
    ] = None,
    list_knobs: Annotated[bool, typer.Option("--list", help="List the knobs and end.")] = False,
    num_prompts: Annotated[
        int, typer.Option(min=1, metavar="N", help="First prompts of the run to read, all their samples.")
    ] = 32,
    updated: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="For the knob refit: a later checkpoint; default: one made with noise."
        ),
    ] = None,
    force: ForceOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Turns knobs of both engines, one at a time, on the tokens of a run: what does each do to the drift?

    The rollout side is read by forced decode and by prefill. The knob `refit` loads weights into the running
    rollout engine: the same checkpoint must change nothing, an updated one must equal a fresh engine. Rows that
    are on disk are kept, crashed ones are taken again, and the table keeps the rows of earlier calls; --force
    begins anew. Ends with 1 where a weight sync is broken.

    **Examples**

    `mismatch-probe ablate runs/first --knob refit`

    `mismatch-probe ablate runs/first --num-prompts 16`

    `mismatch-probe ablate --list`
    """
    from mismatch_probe.causes.knobs import choose_knobs
    from mismatch_probe.errors import EXIT_DRIFT, ConfigError
    from mismatch_probe.stages.ablation import ablate_run
    from mismatch_probe.stages.ablation_rows import clear_rows
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_part, write_reports

    knobs = choose_knobs(knob)
    if list_knobs:
        _show_knobs(output_format)
        return
    if run_path is None:
        raise ConfigError("no run was given", hint="mismatch-probe ablate RUN, or ablate --list")
    run = RunDirectory.open_existing(run_path)
    files = None
    with ProgressWatcher() as watcher, run.claim(resume=True):
        if force:
            clear_rows(run)
        content = ablate_run(run, knobs, watcher, num_prompts=num_prompts, updated=updated)
        if run.result_path.is_file():
            from mismatch_probe.result import read_result

            files = write_reports(run, read_result(run.result_path))
    show_part({"ablation": content}, run, files, output_format, parts=("ablation",), content=content)
    if content["findings"]:
        raise typer.Exit(EXIT_DRIFT)


def _show_knobs(output_format: Format) -> None:
    import json

    from rich.table import Table

    from mismatch_probe.causes.knobs import KNOBS
    from mismatch_probe_cli.console import clean, stdout

    if output_format is Format.json:
        rows = [{"knob": knob.name, "side": knob.side, "changes": knob.changes} for knob in KNOBS]
        typer.echo(json.dumps(rows, indent=1))
        return
    if output_format is Format.markdown:
        typer.echo("| knob | changes |\n|---|---|")
        for knob in KNOBS:
            typer.echo(f"| `{knob.name}` | {knob.changes} |")
        return
    table = Table("knob", "changes", box=None)
    for knob in KNOBS:
        table.add_row(clean(knob.name), clean(knob.changes))
    stdout().print(table)
