"""`export`: a training-config fragment whose numbers come from a run, or the run's drift profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ForceOption, RunArgument

if TYPE_CHECKING:
    from mismatch_probe.export import ExportedConfig


def export(
    run_path: RunArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="Framework: areal, miles, miles-mis, ms-swift, nemo-rl, openrlhf, prime-rl, roll, skyrl, slime, "
            "slime-mis, trl, verl, or vespo for the recipe of its authors; or drift-profile.",
            autocompletion=completion.exporters,
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Another correction than the recommended one.",
            autocompletion=completion.methods,
        ),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="NAME",
            help="What the correction is to serve, stability, signal or throughput, where it is not the run's goal.",
            autocompletion=completion.goals,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here instead of to stdout.")
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge",
            metavar="FILE",
            help="Set the keys in this config: shows the diff, asks, then writes it.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --merge: write without asking.")] = False,
    force: ForceOption = False,
) -> None:
    """Writes the training config that fits what was measured; every value's comment names the measurement that set it.

    The heading says what the config does to this run's own tokens: which share it keeps, mean weight, effective size.
    A run that failed validity or was inconclusive is refused; --force exports it all the same and replaces FILE.
    --merge keeps the comments and the order of a YAML or TOML config; the diff goes to stdout, and without a terminal
    nothing is written unless --yes is there.
    drift-profile writes no config but the drift itself, for mismatch_probe.drift.DriftProfile.

    **Examples**

    `mismatch-probe export runs/first --to verl --out verl.yaml`

    `mismatch-probe export runs/first --to trl`

    `mismatch-probe export runs/first --to verl --merge ppo_trainer.yaml --yes`

    `mismatch-probe export runs/first --to openrlhf --method icepop`

    `mismatch-probe export runs/first --to trl --goal signal`

    `mismatch-probe export runs/first --to drift-profile --out drift_profile.json`
    """
    from mismatch_probe.drift.profile import EXPORT_NAME, export_profile
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.exporting import export_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import clean, stderr

    run = RunDirectory.open_existing(run_path)
    if method is not None and goal is not None:
        raise ConfigError("--method and --goal both say which correction", hint="give one of them")
    if out is not None and merge is not None:
        raise ConfigError("--out and --merge both say where to write", hint="give one of them")
    if to == EXPORT_NAME:
        if method is not None or goal is not None or merge is not None:
            raise ConfigError(f"{EXPORT_NAME} is no config: --method, --goal and --merge are for frameworks")
        exported = export_profile(run, force=force)
    else:
        exported = export_run(run, to, method=method, goal=goal, force=force)
    for note in exported.notes:
        stderr().print(f"[dim]note:[/] {clean(note)}", soft_wrap=True)
    if merge is not None:
        _merge(merge, exported, yes=yes)
    elif out is not None:
        _write(out, exported.text, force=force)
    else:
        typer.echo(exported.text, nl=not exported.text.endswith("\n"))


def _write(out: Path, text: str, *, force: bool) -> None:
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.trace.parts import write_text

    if out.exists() and not force:
        raise ConfigError(f"{out} exists", hint="--force replaces it")
    if not out.parent.is_dir():
        raise ConfigError(f"the folder {out.parent} does not exist", hint="make it, or give another --out")
    write_text(out, text)


def _merge(file: Path, exported: ExportedConfig, *, yes: bool) -> None:
    import sys

    from mismatch_probe.errors import ConfigError
    from mismatch_probe.export.merge import merge_config
    from mismatch_probe_cli.console import clean, stderr

    try:
        before = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read: {error}", hint="--out writes a new file without a config to merge into"
        ) from error
    merged = merge_config(before, exported)
    if merged.text == before:
        stderr().print(f"{clean(str(file))} has all of it already", soft_wrap=True)
        return
    typer.echo(merged.diff(before, file.name), nl=False)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{file} was not changed: nobody is there to ask", hint="--yes writes it")
        if not typer.confirm(f"Write this to {file}?", err=True):
            stderr().print("nothing was written")
            return
    # In place, so that its mode and what links to it stay.
    file.write_bytes(merged.text.encode("utf-8"))
    number = len(merged.changed) + len(merged.added)
    stderr().print(f"{clean(str(file))}: {number} keys set", soft_wrap=True)
