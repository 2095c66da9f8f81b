"""Scoring an imported run: a plan whose tokens are there already."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mismatch_probe.assets.catalog import ModelSource, resolve_model
from mismatch_probe.assets.model_facts import ModelFacts, read_model_facts
from mismatch_probe.config.model import ROLLOUT_LEGS, ROUTED_LEGS, Leg, ProbeConfig
from mismatch_probe.errors import ConfigError, InconclusiveError, RunDirectoryError
from mismatch_probe.preflight.environment import check_environment
from mismatch_probe.prompts.prompt_set import Prompt, PromptSet
from mismatch_probe.secrets import redact
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.importing import PART_ROWS
from mismatch_probe.stages.plan import RunPlan
from mismatch_probe.trace.parts import read_routing_part, write_routing
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

_LEGS: tuple[Leg, ...] = ("rollout/decode", "train/forward", "train/reference", "train/repeat")


def plan_imported(run: RunDirectory, config: ProbeConfig, watcher: Watcher) -> RunPlan:
    """A plan for scoring what was imported; the tokens are those of the run, each row a prompt with one sample.

    Args:
        run: An imported run.
        config: With the checkpoint, and the temperature that the dump was sampled at.
        watcher: Told of long work.

    Raises:
        ConfigError: The checkpoint or the temperature was not given, or a leg cannot be taken from an import.
        InconclusiveError: The run's ids or routes do not fit the checkpoint.
    """
    manifest = run.read_manifest()
    given = config.model_fields_set
    if "model" not in given and config.train.model is None:
        raise ConfigError(
            "the dump does not say which checkpoint its tokens are from", hint="give it: --model CHECKPOINT"
        )
    if "sampling" not in given:
        raise ConfigError(
            "the dump does not say at which temperature its tokens were sampled",
            hint="give it: --set sampling.temperature=1.0",
        )
    imported = manifest["imported"]
    # A forward that was taken without its routes, by the trainer or by an earlier score, is not to be had again.
    forward = (
        run.score_part("train/forward", 0).is_file() and not run.routing_part("train/forward", 0).is_file()
    )
    routed = bool(imported.get("routes")) and not forward and config.routing is not False
    if config.routing and not routed:
        raise ConfigError(
            "the routes of both sides are not to be had of this dump", hint="leave out --set routing=true"
        )
    legs = config.legs if "legs" in given else (*_LEGS, *(ROUTED_LEGS if routed else ()))
    refused = [leg for leg in legs if leg in ROLLOUT_LEGS[1:] or (leg in ROUTED_LEGS and not routed)]
    if refused:
        raise ConfigError(f"{refused[0]} cannot be taken of this imported run", hint="leave it out of legs")
    check_environment()

    def progress(what: str, done: int, total: int) -> None:
        if done == 0:
            watcher.message(what)

    model: ModelSource = resolve_model(config.train_model, layers=config.layers, progress=progress)
    facts = read_model_facts(model.path)
    rollout = Trace(run, int(manifest["num_parts"])).recorded
    largest = int(max(rollout.prompt_tokens.max(initial=0), rollout.response_tokens.max(initial=0)))
    if largest >= facts.vocab_size:
        raise InconclusiveError(
            f"the dump has token {largest}, {model.name} has {facts.vocab_size} tokens",
            hint="is this the checkpoint that sampled it?",
        )
    if routed:
        _check_routes(imported["routes"], facts)
    bounds = rollout.prompt_offsets
    prompts = tuple(
        Prompt(str(row), tuple(rollout.prompt_tokens[bounds[row] : bounds[row + 1]].tolist()))
        for row in range(len(rollout.sequence_id))
    )
    longest = int((rollout.lengths + bounds[1:] - bounds[:-1]).max())
    return RunPlan(
        config=config.model_copy(update={"sampling": config.sampling.model_copy(update={"samples": 1})}),
        rollout_model=model,
        train_model=model,
        facts=facts,
        prompts=PromptSet(manifest["prompts"]["source"], prompts, None, None),
        legs=legs,
        routing=routed,
        keep_sets=False,
        max_model_len=longest,
        prompts_per_part=PART_ROWS,
        num_parts=int(manifest["num_parts"]),
    )


def _check_routes(routes: dict[str, int], facts: ModelFacts) -> None:
    fits = routes["layers"] in (facts.num_moe_layers, facts.num_layers) and routes["top_k"] == facts.top_k
    if not facts.is_moe or not fits:
        raise InconclusiveError(
            f"the dump has routes of {routes['layers']} layers, top-{routes['top_k']}; the checkpoint has "
            f"{facts.num_layers} layers, {facts.num_moe_layers} of them with experts, top-{facts.top_k}",
            hint="is this the checkpoint that sampled it? --set routing=false leaves routes alone",
        )


def _keep_routed_layers(run: RunDirectory, plan: RunPlan) -> None:
    """Leaves out the layers without experts, where the rollout engine listed all layers of the model."""
    for index in range(plan.num_parts):
        path = run.routing_part("rollout/decode", index)
        part = read_routing_part(run.checked(path))
        if part.experts.shape[1] == plan.facts.num_layers != plan.facts.num_moe_layers:
            experts = part.experts[:, list(plan.facts.moe_layers)]
            write_routing(
                path, np.split(experts, part.offsets[1:-1]), part.sequence_id.tolist(), note=run.note_part
            )


def begin_imported(run: RunDirectory, plan: RunPlan) -> None:
    """Writes down which checkpoint an import is scored with.

    Raises:
        RunDirectoryError: It was scored with another one before.
    """
    held = run.read_manifest()
    before = held["model"]["weights_sha256"]
    if before is not None and before != plan.facts.weights_sha256:
        raise RunDirectoryError(
            f"{run.path} was scored with another checkpoint before", hint="import the dump into another run"
        )
    if plan.routing:
        _keep_routed_layers(run, plan)
    facts: dict[str, Any] = dataclasses.asdict(plan.facts)
    model = {key: facts.get(key, value) for key, value in held["model"].items()}
    model |= {
        "name": plan.train_model.name,
        "path": str(plan.train_model.path),
        "note": plan.train_model.note,
        "is_random": plan.train_model.is_random,
        "num_moe_layers": plan.facts.num_moe_layers,
        "moe_layers": list(plan.facts.moe_layers),
    }
    config = plan.config.model_dump(mode="json")
    del config["matrix"]
    for side in ("rollout", "train"):
        config[side]["options"] = redact(config[side]["options"])
    sampling = {**held["imported"]["sampling"], "temperature": plan.config.sampling.temperature}
    run.write_manifest(
        {
            **held,
            "model": model,
            "train_model": {"name": plan.train_model.name},
            "legs": list(dict.fromkeys([*held["legs"], *plan.legs])),
            "config": config,
            "config_set": sorted(plan.config.model_fields_set - {"matrix"}),
            "routing": plan.routing or held["routing"],
            "imported": {**held["imported"], "sampling": sampling},
        }
    )
