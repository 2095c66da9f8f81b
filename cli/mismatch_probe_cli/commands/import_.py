"""`import`: a training framework's dump becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ForceOption, SetOption, command_line


def import_(
    dump: Annotated[Path, typer.Argument(metavar="DUMP", help="File or folder that the framework wrote.")],
    framework: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FRAMEWORK",
            help="prime-rl, nemo-rl, skyrl, slime, miles, verl, roll or trl.",
            autocompletion=completion.importers,
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run directory.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint that sampled the tokens, where known.")
    ] = None,
    assignments: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Reads tokens and log-probabilities out of a training run's dump.

    A dump with both sides can be measured at once; one with the rollout's side alone is scored first.

    **Examples**

    `mismatch-probe import --from nemo-rl logs/train_data_step5.jsonl --out runs/step5`

    `mismatch-probe import --from verl rollout_dump --out runs/verl --model CHECKPOINT --set sampling.temperature=1.0`
    """
    from mismatch_probe.config.load import load_config
    from mismatch_probe.stages.importing import import_dump
    from mismatch_probe.trace.run_directory import RunDirectory

    target = Path("runs/imported") if out is None else out
    settings = load_config(None, assignments or (), {"model": model, "out": str(target)})
    run = RunDirectory(settings.out)
    run.check_free(force=force, resume=False)
    with run.claim(force=force):
        section = import_dump(run, framework, dump, settings, command_line())
    manifest = run.read_manifest()
    typer.echo(
        f"{manifest['num_sequences']} sequences of {manifest['prompts']['num_prompts']} prompts in {run.path}"
    )
    for title, entries in (("missing", section["missing"]), ("left out", section["left_out"])):
        for what, detail in entries.items():
            typer.echo(f"{title}: {what} ({detail})")
    if section["kept_beside"]:
        typer.echo(f"kept beside the run: {', '.join(section['kept_beside'])}")
    step = "measure" if section["two_sided"] else "score"
    typer.echo(f"next: mismatch-probe {step} {run.path}")
