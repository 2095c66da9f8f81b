"""`doctor`: what this machine, this environment and a given pair can do, before a minute is spent."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from typing import TYPE_CHECKING, Annotated

import typer

from mismatch_probe.errors import EXIT_ERROR
from mismatch_probe_cli import completion
from mismatch_probe_cli.options import ConfigOption, SetOption

if TYPE_CHECKING:
    from mismatch_probe.assets.model_facts import ModelFacts
    from mismatch_probe.config.model import ProbeConfig
    from mismatch_probe.engines.protocol import EngineCapabilities
    from mismatch_probe.scorers.protocol import ScorerCapabilities


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Look at a pair on this checkpoint.", autocompletion=completion.models
        ),
    ] = None,
    train_model: Annotated[
        str | None, typer.Option(help="Training-side checkpoint, where it is another one.")
    ] = None,
    rollout: Annotated[
        str | None, typer.Option(help="Rollout engine of the pair.", autocompletion=completion.engines)
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training-side scorer of the pair.", autocompletion=completion.scorers)
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
) -> None:
    """Checks packages, engines and machine; says the mend for what is broken. Status 2 if anything is.

    With a model, an engine, a scorer or a configuration it also looks at that pair: which legs it can take, what it lacks
    and for what, and where the two sides differ before any token is sampled. No engine is started.

    **Examples**

    `mismatch-probe doctor`

    `mismatch-probe doctor --model runs/policy-step-100 --train-model checkpoints/step-100`

    `mismatch-probe doctor --config probe.toml --rollout vllm-server --set sampling.temperature=0.7`
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
    typer.echo(f"{'ray':<16} {_ray()}")
    if not media:
        broken = _devices() or broken
    _show_engines()
    if any(item is not None for item in (model, train_model, rollout, train, config, assignments or None)):
        from mismatch_probe.config.load import load_config

        overrides = {
            "model": model,
            "train.model": train_model,
            "rollout.engine": rollout,
            "train.scorer": train,
        }
        broken = _show_pair(load_config(config, assignments or (), overrides)) or broken
    typer.echo("something is broken" if broken else "ok")
    raise typer.Exit(EXIT_ERROR if broken else 0)


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError):
        return "memory unknown"


def _ray() -> str:
    """Version of Ray; read and not imported, since it is needed for `--ray` alone."""
    try:
        return importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return "not installed; --ray needs it: pip install 'mismatch-probe[ray]'"


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


def _show_engines() -> None:
    from mismatch_probe.engines.registry import engines
    from mismatch_probe.preflight.capabilities import ENGINE_CAPABILITIES, SCORER_CAPABILITIES
    from mismatch_probe.scorers.registry import scorers

    for engine in engines:
        _show_able("rollout", engine.name, engine.item.capabilities(), ENGINE_CAPABILITIES)
    for scorer in scorers:
        _show_able("train", scorer.name, scorer.item.capabilities(), SCORER_CAPABILITIES)


def _show_able(
    side: str, name: str, able: EngineCapabilities | ScorerCapabilities, names: tuple[str, ...]
) -> None:
    given = [capability for capability in names if getattr(able, capability)]
    typer.echo(f"{side:<8} {name:<16} can {', '.join(given) or 'nothing here'}")
    for capability in names:
        if not getattr(able, capability):
            typer.echo(f"{'':<25} not {capability}: {able.reason.get(capability, 'not declared')}")
    for capability in ("sampling_parameters", "prefill_parameters"):
        if capability in able.reason:
            followed = ", ".join(sorted(getattr(able, capability)))
            limit = f"only {followed}" if followed else "none"
            typer.echo(f"{'':<25} {capability}: {limit} ({able.reason[capability]})")


def _show_pair(config: ProbeConfig) -> bool:
    """Shows what the pair can give and where its sides differ; returns whether it cannot be audited as asked."""
    from mismatch_probe.assets.catalog import resolve_model
    from mismatch_probe.assets.model_facts import read_model_facts
    from mismatch_probe.preflight.sides import compare_sides
    from mismatch_probe_cli.console import ProgressWatcher

    with ProgressWatcher():
        rollout = resolve_model(config.rollout_model, layers=config.layers)
        train = resolve_model(config.train_model) if config.train_model != config.rollout_model else rollout
    facts = read_model_facts(rollout.path)
    experts = f", {facts.num_experts} experts, top-{facts.top_k}" if facts.is_moe else ", dense"
    typer.echo(
        f"model            {facts.architecture}, {facts.num_layers} layers{experts}, vocabulary {facts.vocab_size}"
    )
    broken = _show_legs(config, facts, rollout.name)
    for aspect in compare_sides(config, rollout.path, train.path):
        state = "DIFFERS" if aspect.differences else "the same"
        typer.echo(f"{aspect.name:<18} {state}{f': {aspect.note}' if aspect.note else ''}")
        for item in aspect.differences:
            typer.echo(f"  differs        {item.key}: rollout {item.rollout}, train {item.train}")
    return broken


def _show_legs(config: ProbeConfig, facts: ModelFacts, model: str) -> bool:
    from mismatch_probe.errors import MismatchProbeError
    from mismatch_probe.preflight.capabilities import ENGINE_CAPABILITIES, SCORER_CAPABILITIES
    from mismatch_probe.stages.plan import declared_pair, settle_pair

    try:
        pair = declared_pair(config)
        settled = settle_pair(config, pair, facts, model)
    except MismatchProbeError as error:
        typer.echo(f"CANNOT           {error.message}")
        typer.echo(f"  mend           {error.hint}")
        return True
    typer.echo(f"pair             {pair.engine} and {pair.scorer}")
    _show_able("rollout", pair.engine, pair.engine_able, ENGINE_CAPABILITIES)
    _show_able("train", pair.scorer, pair.scorer_able, SCORER_CAPABILITIES)
    typer.echo(f"legs             {', '.join(settled.legs)}")
    typer.echo(f"routes           {'captured on both sides' if settled.routing else 'not captured'}")
    for missing in settled.left_out:
        typer.echo(f"  left out       {missing}")
    return False
