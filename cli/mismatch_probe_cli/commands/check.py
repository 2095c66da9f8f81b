"""`check`: a gate on a measured run, for CI and for the start of a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ResultFormat, ResultFormatOption, SetOption


def check(
    run_path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run directory, or a result.json.", autocompletion=completion.runs
        ),
    ],
    bars_path: Annotated[
        Path | None,
        typer.Option("--bars", metavar="FILE", help="TOML file with bars; those that it names decide."),
    ] = None,
    assignments: SetOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Every bar decides, also those that only warn.")
    ] = False,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write JUnit XML, a test case for each bar."),
    ] = None,
    output_format: ResultFormatOption = ResultFormat.text,
) -> None:
    """Holds a measured run against bars: status 0 when they hold, 1 when one is broken, 3 when nothing can be concluded.

    No engine runs and nothing of the run is changed. Without --bars the run's own bars are held. A bar that is named in
    the file or with --set decides even where the audit would only warn, and must have been measured.

    **Examples**

    `mismatch-probe check runs/first --bars bars.toml`

    `mismatch-probe check runs/first --set bars.k3_max=1e-2 --set bars.sequence_ess=0.5`

    `mismatch-probe check runs/first --format github --junit junit.xml`
    """
    from mismatch_probe.config.bars import load_bars
    from mismatch_probe.config.load import load_config, read_bars
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.gate import hold_gate
    from mismatch_probe.result import check_schema, read_result
    from mismatch_probe_cli.console import clean, stderr, stdout
    from mismatch_probe_reports.gate import gate_json, render_gate_markdown, render_gate_terminal
    from mismatch_probe_reports.github import gate_annotations, write_job_summary
    from mismatch_probe_reports.junit import write_junit

    result_path = run_path / "result.json" if run_path.is_dir() else run_path
    if not run_path.is_dir() and not run_path.is_file():
        wrong = "is neither a folder nor a file" if run_path.exists() else "does not exist"
        raise ConfigError(f"{run_path} {wrong}", hint="give a run directory or a result.json")
    result = read_result(result_path)
    check_schema(result, result_path)
    named = {} if bars_path is None else read_bars(bars_path)
    for assignment in assignments or ():
        if not assignment.strip().startswith("bars."):
            raise ConfigError(
                f"check has no use for --set {assignment}", hint="only bars.KEY=VALUE can be set here"
            )
    named |= load_config(None, assignments or (), {}).bars
    if junit is not None and any(
        junit.resolve() == read.resolve() for read in (result_path, bars_path) if read is not None
    ):
        raise ConfigError(f"--junit {junit} would write over what is read", hint="name another file")
    gate = hold_gate(result, load_bars({**result["bars"], **named}), named, strict=strict)
    if junit is not None:
        write_junit(gate, result, junit)
    if output_format is ResultFormat.json:
        typer.echo(json.dumps(gate_json(gate), indent=1, ensure_ascii=False))
    elif output_format is ResultFormat.markdown:
        typer.echo(render_gate_markdown(gate, result))
    elif output_format is ResultFormat.github:
        typer.echo("\n".join(gate_annotations(gate)))
        write_job_summary(render_gate_markdown(gate, result))
    else:
        render_gate_terminal(gate, result, stdout())
    for key, reason in gate.idle:
        stderr().print(f"[dim]{clean(key)} has no say here: {clean(reason)}[/]", soft_wrap=True)
    raise typer.Exit(gate.exit_code)
