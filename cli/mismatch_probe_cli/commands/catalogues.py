"""`explain`, `methods` and `engines`: what the tool knows."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer


def explain(
    code: Annotated[str, typer.Argument(help="A finding's code, such as MP201; `all` lists them.")],
) -> None:
    """Says what a finding's code means and what to do.

    **Examples**

    `mismatch-probe explain MP201`

    `mismatch-probe explain all`
    """
    from mismatch_probe.errors import ConfigError
    from mismatch_probe.findings import CATALOGUE

    if code.lower() == "all":
        for name, entry in CATALOGUE.items():
            typer.echo(f"{name}  {entry.title}")
        return
    name = code.upper()
    if name not in CATALOGUE:
        nearest = difflib.get_close_matches(name, CATALOGUE, n=1)
        raise ConfigError(
            f"unknown code {code!r}",
            hint=f"did you mean {nearest[0]}?" if nearest else "mismatch-probe explain all",
        )
    entry = CATALOGUE[name]
    typer.echo(f"{name}  {entry.title}\n\n{entry.meaning}\n\nWhat to do: {entry.advice}")


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
    from mismatch_probe.scorers.registry import scorers

    for engine in rollout_engines:
        capabilities = engine.item.capabilities()
        given = [
            name
            for name in ("sampling", "prefill_scoring", "forced_decode", "routing")
            if getattr(capabilities, name)
        ]
        reason = next(iter(capabilities.reason.values()), "")
        typer.echo(f"rollout  {engine.name:<14} {engine.summary}: {', '.join(given) or reason}")
    for scorer in scorers:
        able = scorer.item.capabilities()
        given = [name for name in ("scoring", "routing", "replay") if getattr(able, name)]
        reason = next(iter(able.reason.values()), "")
        typer.echo(f"train    {scorer.name:<14} {scorer.summary}: {', '.join(given) or reason}")
