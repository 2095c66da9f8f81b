"""`record`, `score`, `measure` and `report`: the stages of an audit, each alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mismatch_probe_cli.options import (
    ConfigOption,
    ForceOption,
    RayOption,
    RedactOption,
    ResultFormat,
    ResultFormatOption,
    RunArgument,
    SetOption,
    ShardOption,
    command_line,
)

if TYPE_CHECKING:
    from mismatch_probe.config.model import ProbeConfig
    from mismatch_probe.stages.shard import Shard
    from mismatch_probe.trace.run_directory import RunDirectory


def record(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Checkpoint to sample from.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run directory.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    ray: RayOption = None,
    shard: ShardOption = None,
    force: ForceOption = False,
) -> None:
    """Samples responses with the rollout engine and takes its legs; `score` goes on from there, here or elsewhere.

    **Examples**

    `mismatch-probe record --model tiny-qwen3-moe --out runs/split`

    `mismatch-probe record --config probe.toml --set sampling.temperature=0.8 --out runs/cool`

    `mismatch-probe record --out /shared/run --shard 2/4`
    """
    from mismatch_probe.config.load import load_config
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.executor import open_executor
    from mismatch_probe.stages.plan import make_plan
    from mismatch_probe.stages.record_score import begin_manifest, begin_shard, planned_stages
    from mismatch_probe.stages.record_score import record as record_stage
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher

    settings = load_config(
        config,
        assignments or (),
        {"model": model, "out": None if out is None else str(out), "ray.workers": ray},
    )
    share = _share(shard, settings)
    if force and not share.is_whole:
        raise ConfigError(
            "--force would remove the other shards' parts", hint="remove the run before you start them"
        )
    run = RunDirectory(settings.out)
    run.check_free(force=force, resume=False, shared=not share.is_whole)
    with ProgressWatcher() as watcher, open_executor(settings, ("record",)) as execute:
        plan = make_plan(settings, watcher)
        with run.claim(force=force, shared=not share.is_whole):
            if share.is_whole:
                begin_manifest(run, plan, command_line(), resume=False)
            else:
                begin_shard(run, plan, command_line(), share)
            watcher.stages_planned(planned_stages(run, plan, plan.rollout_legs(), share))
            record_stage(run, plan, watcher, execute, share)


def score(
    run_path: RunArgument,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Checkpoint of an imported run.")] = None,
    assignments: SetOption = None,
    ray: RayOption = None,
    shard: ShardOption = None,
) -> None:
    """Takes the training-side legs of a recorded run; parts that are there are not done again.

    **Examples**

    `mismatch-probe score runs/split`

    `mismatch-probe score runs/split --set train.options.batch_size=16`

    `mismatch-probe score /shared/run --shard 2/4`

    `mismatch-probe score runs/imported --model Qwen/Qwen3-30B-A3B --set sampling.temperature=1.0`
    """
    from mismatch_probe.config.load import load_config
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.executor import open_executor
    from mismatch_probe.stages.imported_plan import begin_imported, plan_imported
    from mismatch_probe.stages.plan import make_plan
    from mismatch_probe.stages.record_score import begin_manifest, planned_stages
    from mismatch_probe.stages.record_score import score as score_stage
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher

    run = RunDirectory.open_existing(run_path)
    imported = "imported" in run.read_manifest()
    if model is not None and not imported:
        raise ConfigError(
            f"{run_path} was recorded with a checkpoint of its own", hint="leave out --model, or record again"
        )
    settings = load_config(
        None,
        assignments or (),
        {"model": model, "out": str(run_path), "ray.workers": ray},
        run.resume_base(),
    )
    share = _share(shard, settings)
    with ProgressWatcher() as watcher, open_executor(settings, ("score",)) as execute:
        plan = plan_imported(run, settings, watcher) if imported else make_plan(settings, watcher)
        with run.claim(resume=True, shared=not share.is_whole):
            with run.manifest_lock():
                if imported:
                    begin_imported(run, plan)
                else:
                    begin_manifest(run, plan, command_line(), resume=True)
            watcher.stages_planned(planned_stages(run, plan, plan.train_legs(), share))
            score_stage(run, plan, watcher, execute, share)


def _share(shard: str | None, settings: ProbeConfig) -> Shard:
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.shard import Shard

    share = Shard() if shard is None else Shard.parse(shard)
    if settings.ray.workers and not share.is_whole:
        raise ConfigError(
            "--shard and --ray exclude each other: a shard has one engine", hint="give --ray 0 with --shard"
        )
    return share


def measure(
    run_path: RunArgument,
    assignments: SetOption = None,
    by_part: Annotated[
        bool,
        typer.Option(
            "--by-part",
            help="Only the drift, with one part in memory at a time, into drift.json; no verdict.",
        ),
    ] = False,
    ray: RayOption = None,
    output_format: ResultFormatOption = ResultFormat.text,
) -> None:
    """Measures a scored run again and writes result.json; ends with the verdict's status.

    **Examples**

    `mismatch-probe measure runs/first`

    `mismatch-probe measure runs/first --set bars.k3_over_rounding=2 --format json`

    `mismatch-probe measure /shared/run --by-part --ray 8`
    """
    from mismatch_probe.config.load import load_config
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.stages.measure import measure_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.showing import show_result

    run = RunDirectory.open_existing(run_path)
    settings = load_config(
        None, assignments or (), {"out": str(run_path), "ray.workers": ray}, run.resume_base()
    )
    if by_part:
        _measure_by_part(run, settings, output_format)
        return
    if ray is not None:
        raise ConfigError("measure takes --ray with --by-part alone", hint="leave it out, or add --by-part")
    with run.claim(resume=True):
        result = measure_run(run, settings.bars)
    show_result(result, run, None, output_format)
    raise typer.Exit(int(result["exit_code"]))


def _measure_by_part(run: RunDirectory, settings: ProbeConfig, output_format: ResultFormat) -> None:
    import json

    from mismatch_probe.stages.executor import open_spread
    from mismatch_probe.stages.part_drift import measure_parts

    with run.claim(resume=True), open_spread(settings) as spread:
        drift = measure_parts(run, spread, max(settings.ray.workers, 1))
    if output_format is ResultFormat.json:
        typer.echo(json.dumps(drift, indent=1))
        return
    token, sequence = drift["token"], drift["sequence"]
    typer.echo(
        f"{token['num_tokens']} tokens, {sequence['num_sequences']} sequences, {drift['num_parts']} parts"
    )
    for name in ("k3", "mean_log_ratio", "mean_abs_log_ratio"):
        typer.echo(f"token {name:<19} {_estimate(token[name])}")
    typer.echo(f"written to {run.drift_path}")


def _estimate(estimate: dict[str, float | str | None]) -> str:
    if estimate["value"] is None:
        return f"none: {estimate['reason']}"
    low, high = estimate["ci_low"], estimate["ci_high"]
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{estimate['value']:.4g}{interval}"


def report(
    run_path: RunArgument, output_format: ResultFormatOption = ResultFormat.text, redact: RedactOption = None
) -> None:
    """Writes report.html and the figures of a measured run again, and prints the result.

    **Examples**

    `mismatch-probe report runs/first`

    `mismatch-probe report runs/first --format markdown`

    `mismatch-probe report runs/first --redact full`
    """
    from mismatch_probe.result import read_result
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.showing import show_result, write_reports

    run = RunDirectory.open_existing(run_path)
    result = read_result(run.result_path)
    with run.claim(resume=True):
        files = write_reports(run, result, redact)
    show_result(result, run, files, output_format)
