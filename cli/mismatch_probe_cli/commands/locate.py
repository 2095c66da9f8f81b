"""`locate`: the module where the two sides part."""

from __future__ import annotations

from typing import Annotated

import typer

from mismatch_probe_cli.options import Format, FormatOption, RunArgument


def locate(
    run_path: RunArgument,
    num_sequences: Annotated[
        int, typer.Option("--sequences", min=1, metavar="N", help="Sequences to feed, one a prompt.")
    ] = 8,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens of a response; the rest is left out.")
    ] = 512,
    keep: Annotated[
        bool, typer.Option("--keep-states", help="Keep the hidden states in RUN/location.")
    ] = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Feeds the same ids to both sides and finds the layer, and the module in it, where their hidden states part.

    Every module of the training side is fed with the rollout engine's own input of that module, so that what came
    before does not count; its error is held against what rounding does to it and against the same module of the other
    layers. Ends with 1 where a module is named.

    **Examples**

    `mismatch-probe locate runs/first`

    `mismatch-probe locate runs/first --sequences 2 --max-tokens 128 --format json`
    """
    from mismatch_probe.errors import EXIT_DRIFT
    from mismatch_probe.stages.locate import locate_run
    from mismatch_probe.trace.run_directory import RunDirectory
    from mismatch_probe_cli.console import ProgressWatcher
    from mismatch_probe_cli.showing import show_part, write_reports

    run = RunDirectory.open_existing(run_path)
    files = None
    with ProgressWatcher() as watcher, run.claim(resume=True):
        content = locate_run(run, watcher, num_sequences=num_sequences, max_tokens=max_tokens, keep=keep)
        if run.result_path.is_file():
            from mismatch_probe.result import read_result

            files = write_reports(run, read_result(run.result_path))
    show_part({"location": content}, run, files, output_format, parts=("location",), content=content)
    if content["findings"]:
        raise typer.Exit(EXIT_DRIFT)
