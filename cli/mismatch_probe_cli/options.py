"""Options that several verbs share."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mismatch_probe_cli import completion


class Format(StrEnum):
    """How a result is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"


class ResultFormat(StrEnum):
    """How a result that has a verdict is printed."""

    text = "text"
    json = "json"
    markdown = "markdown"
    github = "github"


class Redaction(StrEnum):
    """What the token explorer of a report keeps to itself."""

    none = "none"
    hash = "hash"
    full = "full"


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML file with any of the configuration keys."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Set one configuration key; may be given several times."
    ),
]
RayOption = Annotated[
    int | None,
    typer.Option(
        "--ray",
        metavar="N",
        help="Share the parts between N workers of Ray, each with an engine; 0: without Ray.",
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Do the I-th of N shares of the parts; the others do theirs into the same directory.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print the result.")]
ResultFormatOption = Annotated[
    ResultFormat,
    typer.Option(
        "--format",
        "-f",
        help="How to print the result; github: annotations of a workflow, and Markdown into its job summary.",
    ),
]
RedactOption = Annotated[
    Redaction | None,
    typer.Option(
        "--redact",
        help="Tokens in the report's explorer: none shows texts and ids, hash a label for each distinct token, "
        "full neither. Kept for this run; none where never given.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completion.runs)
]


def command_line() -> str:
    """The command as it can be pasted back, without secrets."""
    from mismatch_probe.secrets import redact_command

    return redact_command([Path(sys.argv[0]).name, *sys.argv[1:]])
