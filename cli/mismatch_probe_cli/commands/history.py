"""`history`: many runs over the steps of a training run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mismatch_probe_cli.options import ForceOption, Format, FormatOption, command_line

if TYPE_CHECKING:
    from mismatch_probe.stages.history import Basis


class StepFrom(StrEnum):
    """What a run's step is."""

    version = "version"
    model = "model"
    name = "name"
    time = "time"


def _basis(step_from: StepFrom | None) -> Basis | None:
    return None if step_from is None else step_from.value


def history(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders with run directories in them, or runs themselves."),
    ],
    step_from: Annotated[
        StepFrom | None,
        typer.Option(
            "--step-from",
            help="The step of a run: the recorded version of the weights, the number in the checkpoint's name or in the "
            "run's name, or the time; by default the first that every run has.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Where page and picture go; default: the first DIR."),
    ] = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="End with the status of the last run's verdict, not with 0.")
    ] = False,
    force: ForceOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Shows drift, k-hat and flips of many runs against the step of training, as a table and a picture, and the trend of K3.

    Broken and unmeasured runs are named and left out. history.html and history.png are written.

    **Examples**

    `mismatch-probe history runs`

    `mismatch-probe history runs --step-from time --format markdown --out reports`
    """
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.history import read_history
    from mismatch_probe_cli.console import clean, stderr, stdout
    from mismatch_probe_reports.history import (
        foreign_files,
        render_history_markdown,
        render_history_terminal,
        write_history,
    )

    content = read_history(folders, _basis(step_from))
    target = out or folders[0]
    foreign = [] if force else foreign_files(target)
    if foreign:
        raise ConfigError(
            f"{foreign[0]} is there and was not written by history",
            hint="--out DIR writes elsewhere, --force replaces it",
        )
    page = write_history(content, target, command_line())
    if output_format is Format.json:
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    elif output_format is Format.markdown:
        typer.echo(render_history_markdown(content))
    else:
        render_history_terminal(content, stdout())
    (stdout() if output_format is Format.text else stderr()).print(
        f"report: {clean(str(page))}", soft_wrap=True
    )
    raise typer.Exit(int(content["rows"][-1]["exit_code"]) if gate else 0)
