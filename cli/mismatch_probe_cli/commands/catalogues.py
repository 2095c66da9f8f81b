"""`explain`, `methods` and `engines`: what the tool knows."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict
from typing import Annotated

import typer

from mismatch_probe.errors import ConfigError
from mismatch_probe_cli import completion
from mismatch_probe_cli.options import Format, FormatOption


def explain(
    code: Annotated[
        str,
        typer.Argument(
            metavar="[CODE]",
            help="A finding's code (MP201) or a cause (stale-weights, MP640); `all` and `causes` list them.",
            autocompletion=completion.codes,
        ),
    ] = "all",
    output_format: FormatOption = Format.text,
) -> None:
    """Says what a finding or a cause means, what shows it and what to do; without a code, lists all.

    **Examples**

    `mismatch-probe explain MP201`

    `mismatch-probe explain stale-weights --format markdown`

    `mismatch-probe explain causes`

    `mismatch-probe explain`
    """
    from mismatch_probe.findings import CATALOGUE

    if code.lower() in ("all", "causes"):
        _show_titles(output_format, findings=code.lower() == "all")
    elif code.upper() in CATALOGUE:
        _show_finding(code.upper(), output_format)
    else:
        _show_cause(code, output_format)


def _show_titles(output_format: Format, *, findings: bool) -> None:
    from mismatch_probe.causes.catalogue import CAUSES
    from mismatch_probe.findings import CATALOGUE
    from mismatch_probe_cli import listing

    titles = {name: entry.title for name, entry in CATALOGUE.items()} if findings else {}
    titles |= {cause.code: f"{cause.id}: {cause.title}" for cause in CAUSES.values()}
    groups = [
        (
            f"{hundred}xx {heading}",
            {code: titles[code] for code in sorted(titles) if code.startswith(hundred)},
        )
        for hundred, heading in listing.HUNDREDS.items()
    ]
    section = listing.titles_section(
        "Findings and causes" if findings else "Causes", [group for group in groups if group[1]]
    )
    lines = [f"{code}  {titles[code]}" for code in sorted(titles)]
    listing.show(section, lines, {code: titles[code] for code in sorted(titles)}, output_format)


def _show_finding(name: str, output_format: Format) -> None:
    from mismatch_probe.findings import CATALOGUE

    entry = CATALOGUE[name]
    if output_format is Format.json:
        typer.echo(json.dumps({"code": name, **asdict(entry)}, indent=1))
        return
    heading = f"# {name}: {entry.title}" if output_format is Format.markdown else f"{name}  {entry.title}"
    typer.echo(f"{heading}\n\n{entry.meaning}\n\nWhat to do: {entry.advice}")


def _show_cause(name: str, output_format: Format) -> None:
    from mismatch_probe.causes.catalogue import CAUSES, cause_markdown, cause_page, find_cause
    from mismatch_probe.findings import CATALOGUE

    try:
        cause = find_cause(name)
    except ConfigError as error:
        nearest = difflib.get_close_matches(name.upper(), CATALOGUE, n=1)
        nearest += difflib.get_close_matches(name.lower(), CAUSES, n=1)
        raise ConfigError(
            f"unknown code or cause {name!r}",
            hint=f"did you mean {' or '.join(nearest)}?" if nearest else "mismatch-probe explain all",
        ) from error
    if output_format is Format.json:
        typer.echo(json.dumps(asdict(cause), indent=1))
    else:
        typer.echo(cause_markdown(cause) if output_format is Format.markdown else cause_page(cause))


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Say all about one correction.", autocompletion=completion.methods
        ),
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(
            "--framework",
            metavar="NAME",
            help="Only what a framework's own code has (verl, trl, slime, ...).",
            autocompletion=completion.frameworks,
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Lists the corrections that can be simulated: what each reads, its defaults, and how frameworks code it.

    Into a pipe it prints one line a correction.

    **Examples**

    `mismatch-probe methods`

    `mismatch-probe methods vespo`

    `mismatch-probe methods --framework verl --format markdown`

    `mismatch-probe methods | grep -i sequence`
    """
    from mismatch_probe.weights import describe_methods, framework_methods, get_method
    from mismatch_probe_cli import listing
    from mismatch_probe_cli import method_tables as tables

    rows = describe_methods()
    if framework is not None:
        kept = framework_methods(framework)
        rows = [row for row in rows if row.name in kept]
    if name is None:
        content = [asdict(row) for row in rows]
        section, lines = (
            tables.methods_section(rows, framework, listing.room(output_format)),
            tables.method_lines(rows, framework),
        )
        listing.show(section, lines, content, output_format)
        return
    get_method(name)
    row = next((row for row in rows if row.name == name), None)
    if row is None:
        raise ConfigError(
            f"{framework} has no {name!r}", hint=f"it has {', '.join(row.name for row in rows)}"
        )
    listing.show(tables.method_section(row), [row.details], asdict(row), output_format)


def engines(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Say what one engine or scorer can give, and why not the rest.",
            autocompletion=completion.sides,
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Lists rollout engines and training-side scorers, whether they are here, and what each can give.

    Into a pipe it prints one line an engine, or one line a capability where NAME is given.

    **Examples**

    `mismatch-probe engines`

    `mismatch-probe engines vllm`

    `mismatch-probe engines --format json`

    `mismatch-probe engines | grep vllm`
    """
    from mismatch_probe_cli import engine_tables as tables
    from mismatch_probe_cli import listing

    entries = tables.side_entries()
    if name is None:
        section = tables.engines_section(entries, listing.room(output_format))
        lines = tables.engine_lines(entries)
    else:
        known = dict.fromkeys(entry.name for entry in entries)
        entries = [entry for entry in entries if entry.name == name]
        if not entries:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown engine or scorer {name!r}", hint=hint)
        section, lines = tables.engine_section(name, entries), tables.engine_detail_lines(entries)
    content = [asdict(entry) | {"available": entry.available, "mend": entry.mend} for entry in entries]
    listing.show(section, lines, content, output_format)
