"""`doctor`: what this machine and this environment can do, before a minute is spent."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from mismatch_probe.errors import EXIT_ERROR


def doctor(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Also look at this checkpoint.")] = None,
    train_model: Annotated[
        str | None, typer.Option(help="Also compare its configuration with this training-side checkpoint.")
    ] = None,
) -> None:
    """Checks packages, engines and machine; says the mend for what is broken. Status 2 if anything is.

    **Examples**

    `mismatch-probe doctor`

    `mismatch-probe doctor --model runs/policy-step-100 --train-model checkpoints/step-100`
    """
    from mismatch_probe.preflight.environment import (
        broken_media_packages,
        package_versions,
        uninstall_command,
    )

    broken = False
    for name, version in package_versions().items():
        typer.echo(f"{name:<16} {version}")
    media = broken_media_packages()
    for package in media:
        broken = True
        typer.echo(f"BROKEN           {package.name}: {package.message}")
    if media:
        typer.echo(f"  they break transformers and vLLM and are not needed: {uninstall_command(media)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    typer.echo(
        f"machine          {cores} cores, {_memory()}, {shutil.disk_usage('.').free / 1e9:.0f} GB free here"
    )
    if not media:
        broken = _devices() or broken
    from mismatch_probe_cli.commands.catalogues import engines

    engines()
    if model is not None:
        _show_model(model, train_model)
    typer.echo("something is broken" if broken else "ok")
    raise typer.Exit(EXIT_ERROR if broken else 0)


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError):
        return "memory unknown"


def _devices() -> bool:
    """Shows the accelerator; returns whether torch is broken."""
    try:
        import torch
    except Exception as error:
        typer.echo(f"BROKEN           torch: {error}")
        return True
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        typer.echo(
            f"accelerator      {torch.accelerator.device_count()} x {kind.type if kind else 'unknown'}"
        )
    else:
        typer.echo("accelerator      none: engines run on the CPU")
    return False


def _show_model(model: str, train_model: str | None) -> None:
    from mismatch_probe.assets.catalog import resolve_model
    from mismatch_probe.assets.model_facts import read_model_facts
    from mismatch_probe.preflight.pair import config_differences

    source = resolve_model(model)
    facts = read_model_facts(source.path)
    experts = f", {facts.num_experts} experts, top-{facts.top_k}" if facts.is_moe else ", dense"
    typer.echo(
        f"model            {facts.architecture}, {facts.num_layers} layers{experts}, vocabulary {facts.vocab_size}"
    )
    if train_model is not None:
        differences = config_differences(source.path, resolve_model(train_model).path)
        for item in differences:
            typer.echo(f"  differs        {item.key}: rollout {item.rollout}, train {item.train}")
        if not differences:
            typer.echo("  the two checkpoints have the same configuration and vocabulary")
