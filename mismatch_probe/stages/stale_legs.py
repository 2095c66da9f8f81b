"""Legs of later checkpoints: the run's response tokens read as the run's own weights were read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.assets.model_facts import ModelFacts, read_model_facts
from mismatch_probe.errors import ConfigError, InconclusiveError, RunDirectoryError
from mismatch_probe.preflight.pair import config_differences
from mismatch_probe.result import to_json
from mismatch_probe.secrets import lacks_secret
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import ScoreJob, Task
from mismatch_probe.stages.process import run_worker
from mismatch_probe.stages.record_score import REFERENCE_DTYPE
from mismatch_probe.trace.manifest import responses_hash
from mismatch_probe.trace.parts import read_json, write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

MEND = "give the optimiser steps since the run's own weights, as in 8={}"
_STEP_NAME = re.compile(r"(?:.*(?:step|checkpoint|ckpt|iter|iteration)[-_]?)?(\d+)", re.IGNORECASE)
_SAME_SHAPE = ("architecture", "vocab_size", "num_layers", "num_moe_layers", "num_experts", "top_k")
_SAME_READING = ("version", "dtype", "device", "attention", "details")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A later checkpoint of the run's model.

    Attributes:
        steps: Optimiser steps since the run's own weights.
        facts: Of its folder.
    """

    steps: float
    facts: ModelFacts

    @property
    def label(self) -> str:
        """The steps as they name a leg: 8, or 0.5."""
        return str(int(self.steps)) if self.steps.is_integer() else repr(self.steps)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read log-probabilities.

    Attributes:
        own_leg: The run's leg that reads its own weights this way.
        folder: Where the legs of checkpoints go, below `scores`.
        engine: Key of the manifest's `engines` that says what read `own_leg`.
        scorer: Registry name.
        spec: Fields of `ScorerSpec` but the model's path.
        temperature: Of the sampling.
    """

    own_leg: str
    folder: str
    engine: str
    scorer: str
    spec: dict[str, Any]
    temperature: float

    def leg(self, checkpoint: Checkpoint) -> str:
        """The leg of a checkpoint, such as stale/8."""
        return f"{self.folder}/{checkpoint.label}"


def resolve_checkpoint(steps: float | None, path: Path) -> Checkpoint:
    """Reads a checkpoint folder.

    Args:
        steps: Optimiser steps since the run's own weights; None reads them off a name such as `step-8`,
            `checkpoint-8`, `global_step_8` or `8`. A number after any other word is not taken for steps.
        path: A folder in the Hugging Face layout.

    Raises:
        ConfigError: No steps are to be had, they are negative, or the folder is no checkpoint.
    """
    if steps is None:
        match = _STEP_NAME.fullmatch(path.absolute().name)
        if match is None:
            raise ConfigError(f"the steps of {path} are not in its name", hint=MEND.format(path))
        steps = float(match[1])
    if not 0 <= steps < float("inf"):
        raise ConfigError(f"{path}: {steps} is no number of optimiser steps", hint=MEND.format(path))
    if not path.is_dir():
        raise ConfigError(f"the checkpoint {path} does not exist", hint="check the path")
    return Checkpoint(float(steps), read_model_facts(path))


def check_same_model(manifest: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raises if a checkpoint is not one of the run's model.

    Its shape is held against the manifest, and its whole configuration and vocabulary against the folder of
    the run's own weights where this machine has that.

    Raises:
        ConfigError: With the first difference.
    """
    folder, model = checkpoint.facts.path, manifest["model"]
    differences = [
        (key, model[key], getattr(checkpoint.facts, key))
        for key in _SAME_SHAPE
        if key in model and model[key] != getattr(checkpoint.facts, key)
    ]
    named = manifest["config"]["train"].get("model")
    own = model.get("path") if named is None else named
    if not differences and own is not None and (Path(own) / "config.json").is_file():
        differences = [(d.key, d.rollout, d.train) for d in config_differences(Path(own), folder)]
    if differences:
        key, wanted, got = differences[0]
        raise ConfigError(
            f"{folder} is no later checkpoint of the run's model: {key} is {got}, the run's is {wanted}",
            hint="give checkpoints of the training that began with the run's weights",
        )


def own_readings(run: RunDirectory, manifest: Mapping[str, Any]) -> list[Reading]:
    """How the run's own weights were read: as `train/forward`, and as `train/reference` where that was taken.

    Raises:
        InconclusiveError: There is no leg `train/forward`.
        RunDirectoryError: The manifest does not say how it was read.
        ConfigError: It was read with an option that the manifest keeps secret.
    """
    num_parts = int(manifest["num_parts"])
    if not leg_is_complete(run, "train/forward", num_parts):
        raise InconclusiveError(
            "the leg train/forward was not taken, so there is no pi_old to compare with",
            hint=f"run: mismatch-probe score {run.path}",
        )
    try:
        model, config = manifest["model"], manifest["config"]
        scorer, dtype = config["train"]["scorer"], config["train"]["dtype"]
        temperature = float(config["sampling"]["temperature"])
        spec = {
            "num_moe_layers": model["num_moe_layers"] if manifest["routing"] else 0,
            "top_k": model["top_k"] or 0,
            "options": config["train"]["options"],
            "trust_remote_code": config["trust_remote_code"],
        }
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(
            f"{run.manifest_path} does not say how train/forward was read: {error} is missing",
            hint="score the run with mismatch-probe",
        ) from error
    if lacks_secret(spec["options"]):
        raise ConfigError(
            "train.options hold a secret that the manifest does not keep",
            hint="score the run with options that need none",
        )
    forward = Reading("train/forward", "stale", "train", scorer, {**spec, "dtype": dtype}, temperature)
    if dtype == REFERENCE_DTYPE or not leg_is_complete(run, "train/reference", num_parts):
        return [forward]
    exact = {**spec, "dtype": REFERENCE_DTYPE}
    return [
        forward,
        Reading("train/reference", "stale/reference", "reference", scorer, exact, temperature),
    ]


def leg_is_complete(run: RunDirectory, leg: str, num_parts: int) -> bool:
    """Whether all parts of a scored leg are on disk."""
    return all(run.score_part(leg, part).is_file() for part in range(num_parts))


def leg_weights(run: RunDirectory, leg: str) -> str | None:
    """Hash of the weights that a checkpoint's leg was read with; None where it is not known."""
    path = _state_path(run, leg)
    if not path.is_file():
        return None
    weights = read_json(path)["identity"]["weights_sha256"]
    return None if weights is None else str(weights)


def score_checkpoint(
    run: RunDirectory, trace: Trace, reading: Reading, checkpoint: Checkpoint, watcher: Watcher
) -> dict[str, Any]:
    """Takes the leg of a checkpoint; parts that are there, of the same weights and options, are kept.

    Returns:
        The facts of the scorer that read it.

    Raises:
        MismatchProbeError: What the scorer raised.
    """
    leg, facts = reading.leg(checkpoint), checkpoint.facts
    parts = [run.score_part(leg, part) for part in range(int(run.read_manifest()["num_parts"]))]
    identity = to_json(
        {
            "checkpoint": facts.path.name,
            "weights_sha256": facts.weights_sha256,
            "responses_sha256": responses_hash(trace.recorded),
            "scorer": reading.scorer,
            "spec": reading.spec,
            "temperature": reading.temperature,
        }
    )
    state_path = _state_path(run, leg)
    unread: dict[str, Any] = {"identity": None, "facts": None}
    state = read_json(state_path) if state_path.is_file() else unread
    # Without a hash nobody can say that these weights are those of the parts on disk.
    if facts.weights_sha256 is None or state["identity"] != identity:
        for part in parts:
            part.unlink(missing_ok=True)
        state = {"identity": identity, "facts": None}
        write_json(state_path, state)
    missing = tuple(index for index, part in enumerate(parts) if not part.is_file())
    if missing or state["facts"] is None:
        read = _run(run, trace, reading, checkpoint, missing, watcher)
        state = {"identity": identity, "facts": to_json(read)}
        write_json(state_path, state)
    return dict(state["facts"])


def differing_reading(manifest: Mapping[str, Any], reading: Reading, facts: Mapping[str, Any]) -> list[str]:
    """Sentences about a scorer that is not what read the run's own weights."""
    before = to_json(manifest.get("engines", {}).get(reading.engine)) or {}
    return [
        f"{reading.own_leg} was read with {key} {before[key]}, the checkpoints with {facts.get(key)}: "
        "what that changes is in the KL"
        for key in _SAME_READING
        if key in before and before[key] != facts.get(key)
    ]


def _state_path(run: RunDirectory, leg: str) -> Path:
    return run.score_part(leg, 0).with_name("checkpoint.json")


def _run(
    run: RunDirectory,
    trace: Trace,
    reading: Reading,
    checkpoint: Checkpoint,
    missing: tuple[int, ...],
    watcher: Watcher,
) -> dict[str, Any]:
    import pyarrow.parquet as pq

    leg = reading.leg(checkpoint)
    total = len(trace.rollout.sequence_id)
    todo = sum(int(pq.read_metadata(run.rollout_part(index)).num_rows) for index in missing)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "leg":
            watcher.stage_started(leg, total, total - todo, f"{reading.scorer} {reading.spec['dtype']}")
        elif event["event"] == "progress":
            watcher.stage_progress(leg, event["sequences"], event["tokens"])

    watcher.message(f"reading {checkpoint.facts.path.name} in {reading.spec['dtype']}")
    job = ScoreJob(
        run=run.path.resolve(),
        scorer=reading.scorer,
        spec={**reading.spec, "model_path": str(checkpoint.facts.path.resolve())},
        temperature=reading.temperature,
        routing=False,
        # As the run's own readings: staleness is no change of support.
        keep_sets=bool(run.read_manifest().get("keep_sets")),
        tasks=(Task(leg=leg, parts=missing),),
    )
    facts = run_worker(job, run.log_path("staleness"), on_event)
    watcher.stage_finished(leg)
    return facts
