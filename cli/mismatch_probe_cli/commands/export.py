"""`export`: a training-config fragment whose numbers come from a run, or the run's drift profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ForceOption, RunArgument


def export(
    run_path: RunArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="Framework: trl or verl; or drift-profile.", autocompletion=completion.exporters
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here instead of to stdout.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Writes the training config that fits what was measured; every value's comment names the measurement that set it.

    A run that failed validity or was inconclusive is refused; --force exports it all the same and replaces FILE.
    drift-profile writes no config but the drift itself, for mismatch_probe.drift.DriftProfile.

    **Examples**

    `mismatch-probe export runs/first --to verl --out verl.yaml`

    `mismatch-probe export runs/first --to trl`

    `mismatch-probe export runs/first --to drift-profile --out drift_profile.json`
    """
    from mismatch_probe.drift.profile import EXPORT_NAME, export_profile
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.export import export_config
    from mismatch_probe.result import read_result
    from mismatch_probe.trace.parts import write_text
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import clean, stderr

    run = RunDirectory.open_existing(run_path)
    if to == EXPORT_NAME:
        exported = export_profile(run, force=force)
    else:
        exported = export_config(read_result(run.result_path), to, force=force)
    if out is None:
        typer.echo(exported.text, nl=not exported.text.endswith("\n"))
    else:
        if out.exists() and not force:
            raise ConfigError(f"{out} exists", hint="--force replaces it")
        if not out.parent.is_dir():
            raise ConfigError(
                f"the folder {out.parent} does not exist", hint="make it, or give another --out"
            )
        write_text(out, exported.text)
    for note in exported.notes:
        stderr().print(f"[dim]note:[/] {clean(note)}", soft_wrap=True)
