"""The `mismatch-probe` command: verbs, and the exit status that each end has.

0 pass, 1 drift over a bar, 2 usage, config or tool error, 3 inconclusive. Python's own status for a crash is 1, which would
read as a verdict, so `main` maps everything unforeseen to 2.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from mismatch_probe import __version__
from mismatch_probe.errors import EXIT_ERROR, MismatchProbeError
from mismatch_probe_cli.commands import (
    ablate,
    audit,
    catalogues,
    check,
    diff,
    doctor,
    export,
    history,
    import_,
    locate,
    recommend,
    simulate,
    stages,
    tune,
)

_OF_THE_SYSTEM = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
)
"""Refusals of the operating system, which are no fault of this program."""

app = typer.Typer(
    name="mismatch-probe",
    help="How far do a rollout engine and its trainer disagree on the same tokens, why, and what follows.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"mismatch-probe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    pass


app.command("audit")(audit.audit)
app.command("record")(stages.record)
app.command("score")(stages.score)
app.command("measure")(stages.measure)
app.command("simulate")(simulate.simulate)
app.command("tune")(tune.tune)
app.command("recommend")(recommend.recommend)
app.command("ablate")(ablate.ablate)
app.command("locate")(locate.locate)
app.command("report")(stages.report)
app.command("check")(check.check)
app.command("diff")(diff.diff)
app.command("history")(history.history)
app.command("export")(export.export)
app.command("import")(import_.import_)
app.command("doctor")(doctor.doctor)
app.command("explain")(catalogues.explain)
app.command("methods")(catalogues.methods)
app.command("engines")(catalogues.engines)


def main() -> None:
    """Runs the command line and ends the process with the documented status."""
    try:
        app()
    except MismatchProbeError as error:
        from mismatch_probe_cli.console import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted; --resume goes on where it stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe went away (head, less); nothing is wrong with the run.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_ERROR)
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            _unexpected(error)
        where = f": {error.filename}" if error.filename else ""
        typer.echo(f"error: {error.strerror}{where}", err=True)
        typer.echo("  nothing that was written is damaged; mend it, then go on with --resume", err=True)
        sys.exit(EXIT_ERROR)
    except Exception as error:
        _unexpected(error)


def _unexpected(error: Exception) -> NoReturn:
    if os.environ.get("MISMATCH_PROBE_DEBUG"):
        traceback.print_exc()
    typer.echo(f"error: unexpected {type(error).__name__}: {error}", err=True)
    typer.echo("  this is a bug of mismatch-probe; MISMATCH_PROBE_DEBUG=1 shows where", err=True)
    sys.exit(EXIT_ERROR)
