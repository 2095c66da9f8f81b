"""`explain`, `methods` and `engines`: what the tool knows."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mismatch_probe_cli.options import Format, FormatOption

if TYPE_CHECKING:
    from mismatch_probe.engines.protocol import EngineCapabilities
    from mismatch_probe.scorers.protocol import ScorerCapabilities


def explain(
    code: Annotated[
        str,
        typer.Argument(
            help="A finding's code (MP201) or a cause (stale-weights, MP640); `all` and `causes` list them."
        ),
    ],
    output_format: FormatOption = Format.text,
) -> None:
    """Says what a finding or a cause means, what shows it and what to do.

    **Examples**

    `mismatch-probe explain MP201`

    `mismatch-probe explain stale-weights --format markdown`

    `mismatch-probe explain causes`
    """
    from mismatch_probe.causes.catalogue import CAUSES
    from mismatch_probe.findings import CATALOGUE

    if code.lower() in ("all", "causes"):
        titles = {} if code.lower() == "causes" else {name: entry.title for name, entry in CATALOGUE.items()}
        titles |= {cause.code: f"{cause.id}: {cause.title}" for cause in CAUSES.values()}
        _show_titles(titles, output_format)
    elif code.upper() in CATALOGUE:
        _show_finding(code.upper(), output_format)
    else:
        _show_cause(code, output_format)


def _show_titles(titles: dict[str, str], output_format: Format) -> None:
    if output_format is Format.json:
        typer.echo(json.dumps(titles, indent=1))
        return
    start = "- " if output_format is Format.markdown else ""
    for name, title in titles.items():
        typer.echo(f"{start}{name}  {title}")


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
    from mismatch_probe.errors import ConfigError
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


def methods() -> None:
    """Lists the corrections that can be simulated.

    **Examples**

    `mismatch-probe methods`

    `mismatch-probe methods | grep -i sequence`
    """
    from mismatch_probe.weights import available_methods, get_method

    for name in available_methods():
        method = get_method(name)
        summary = (type(method).__doc__ or "").strip().splitlines()
        typer.echo(f"{name:<14} {method.level:<9} {summary[0] if summary else ''}")


def engines() -> None:
    """Lists rollout engines and training-side scorers and what each can give here.

    **Examples**

    `mismatch-probe engines`

    `mismatch-probe engines | grep vllm`
    """
    from mismatch_probe.engines.registry import engines as rollout_engines
    from mismatch_probe.preflight.capabilities import ENGINE_CAPABILITIES, SCORER_CAPABILITIES
    from mismatch_probe.scorers.registry import scorers

    for engine in rollout_engines:
        able = engine.item.capabilities()
        _show_entry("rollout", engine.name, engine.summary, able, ENGINE_CAPABILITIES)
    for scorer in scorers:
        _show_entry("train", scorer.name, scorer.summary, scorer.item.capabilities(), SCORER_CAPABILITIES)


def _show_entry(
    side: str,
    name: str,
    summary: str,
    able: EngineCapabilities | ScorerCapabilities,
    capabilities: tuple[str, ...],
) -> None:
    given = [capability for capability in capabilities if getattr(able, capability)]
    reason = next(iter(able.reason.values()), "")
    typer.echo(f"{side:<8} {name:<16} {summary}: {', '.join(given) or reason}")
