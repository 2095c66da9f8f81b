"""`audit`: record, score, measure, judge and report, in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import (
    ConfigOption,
    ForceOption,
    RayOption,
    RedactOption,
    ResultFormat,
    ResultFormatOption,
    SetOption,
    command_line,
)


def audit(
    model_argument: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Known name, folder, or name in the local model cache.",
            autocompletion=completion.models,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The same as MODEL.", autocompletion=completion.models)
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="For a geometry such as qwen3-30b-a3b: layers of random weights to make."),
    ] = None,
    rollout: Annotated[
        list[str] | None,
        typer.Option(
            help="Rollout engine; see `mismatch-probe engines`. Several make a matrix of pairs.",
            autocompletion=completion.engines,
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="Training-side scorer; several make a matrix of pairs.", autocompletion=completion.scorers
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts: .jsonl, .parquet or .txt; default: the model's own."),
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Use only the first N prompts.")] = None,
    samples: Annotated[int | None, typer.Option(help="Responses per prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest response, in tokens.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run directory.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    ray: RayOption = None,
    shard: Annotated[str | None, typer.Option("--shard", hidden=True)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    force: ForceOption = False,
    output_format: ResultFormatOption = ResultFormat.text,
    redact: RedactOption = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report/--no-report", help="Draw report.html and figures; the verb `report` draws them later."
        ),
    ] = True,
) -> None:
    """Audits an engine pair: samples with the rollout engine, scores the same ids with the trainer, measures and judges.

    Ends with status 0 on pass, 1 on drift over a bar, 2 on an error, 3 when nothing can be concluded.

    **Examples**

    `mismatch-probe audit --out runs/first`

    `mismatch-probe audit Qwen/Qwen3-30B-A3B --prompts math.jsonl --num-prompts 256 --samples 4 --max-tokens 4096`

    `mismatch-probe audit --model qwen3-30b-a3b --layers 2 --num-prompts 4 --max-tokens 16 --out runs/geometry`

    `mismatch-probe audit --rollout vllm --rollout transformers --train transformers --out runs/matrix`

    `mismatch-probe audit --ray 4 --set rollout.options.tensor_parallel_size=2 --out runs/node`

    `mismatch-probe audit --out runs/first --resume`
    """
    from mismatch_probe.config.load import load_config
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.executor import open_executor
    from mismatch_probe.stages.plan import make_plan
    from mismatch_probe.stages.whole_audit import audit_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.commands.matrix import audit_matrix
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_result, write_reports

    if model is not None and model_argument is not None and model != model_argument:
        raise ConfigError(f"two models: {model_argument!r} and --model {model!r}", hint="give one of them")
    if shard is not None:
        raise ConfigError(
            "an audit measures the whole run and cannot be one shard of it",
            hint=f"run record --shard {shard}, score --shard {shard}, and measure once all shards are done",
        )
    if resume and force:
        raise ConfigError("--resume and --force exclude each other", hint="give one of them")
    overrides = {
        "model": model or model_argument,
        "layers": layers,
        **_engines("rollout", "engine", rollout, several=len(train or ()) > 1),
        **_engines("train", "scorer", train, several=len(rollout or ()) > 1),
        "prompts.source": None if prompts is None else str(prompts),
        "prompts.num_prompts": num_prompts,
        "sampling.samples": samples,
        "sampling.max_tokens": max_tokens,
        "out": None if out is None else str(out),
        "ray.workers": ray,
    }
    base = None
    if resume:
        run = RunDirectory(load_config(config, assignments or (), overrides).out)
        run.check_free(force=False, resume=True)
        base = run.resume_base()
    settings = load_config(config, assignments or (), overrides, base)
    run = RunDirectory(settings.out)
    run.check_free(force=force, resume=resume)
    if settings.is_matrix:
        raise typer.Exit(
            audit_matrix(
                run,
                settings,
                force=force,
                resume=resume,
                output_format=output_format,
                redact=redact,
                report=report,
            )
        )
    # What a run to resume still lacks is not known yet.
    with (
        ProgressWatcher() as watcher,
        open_executor(settings, () if resume else ("record", "score")) as execute,
    ):
        plan = make_plan(settings, watcher)
        with run.claim(force=force, resume=resume):
            result = audit_run(run, plan, watcher, execute, command=command_line(), resume=resume)
            files = write_reports(run, result, redact, draw=report)
    show_result(result, run, files, output_format)
    raise typer.Exit(int(result["exit_code"]))


def _engines(side: str, key: str, names: list[str] | None, *, several: bool) -> dict[str, object]:
    """One engine is the pair's; several, or one beside several of the other side, are entries of the matrix."""
    if not names:
        return {}
    if len(names) == 1 and not several:
        return {f"{side}.{key}": names[0]}
    return {f"matrix.{side}": [{key: name} for name in names]}
