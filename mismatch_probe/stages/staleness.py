"""Staleness from real updates: later checkpoints of a training read the tokens that the run sampled.

    W = pi_k / mu = (pi_k / pi_old) (pi_old / mu): staleness times mismatch

pi_old is the run's own leg `train/forward`; pi_k is a checkpoint k optimiser steps later, read by the same
scorer with the same dtype and options into the leg `stale/<k>`. Where the run has the float32 leg
`train/reference`, every checkpoint is read in float32 too, into `stale/reference/<k>`: the difference of those
two is the movement of the policy without the rounding of training's dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mismatch_probe.errors import ConfigError, RunDirectoryError
from mismatch_probe.result import to_json
from mismatch_probe.simulate.extrapolate import StalenessModel
from mismatch_probe.simulate.stale_updates import MeasuredUpdates
from mismatch_probe.simulate.staleness import StalenessFit, StalenessPoint, fit_staleness
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.stale_legs import (
    MEND,
    Checkpoint,
    check_same_model,
    differing_reading,
    leg_is_complete,
    leg_weights,
    own_readings,
    resolve_checkpoint,
    score_checkpoint,
)
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.trace.manifest import responses_hash
from mismatch_probe.trace.parts import read_json, write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace

STALENESS_SCHEMA_VERSION = 1


def measure_staleness(
    run: RunDirectory, checkpoints: Sequence[tuple[float | None, Path]], watcher: Watcher
) -> StalenessFit:
    """Scores the run's response tokens with later checkpoints and fits how far updates move the policy.

    What is there of the same weights is not scored again. Writes `staleness.json` into the run. The caller
    holds the run directory (`RunDirectory.claim`).

    Args:
        run: A scored run.
        checkpoints: (optimiser steps since the run's own weights, folder); steps None are read off the name
            of the folder, see `resolve_checkpoint`.
        watcher: Told of progress.

    Raises:
        ConfigError: A folder that is no checkpoint of the run's model, or steps that are not to be had.
        InconclusiveError: The run has no leg `train/forward`, or the checkpoints carry no law of growth.
        MismatchProbeError: What the scorer raised.
    """
    manifest = run.read_manifest()
    trace = Trace(run, int(manifest["num_parts"]))
    readings = own_readings(run, manifest)
    found = [resolve_checkpoint(steps, path) for steps, path in checkpoints]
    later = _later(found)
    for checkpoint in later:
        check_same_model(manifest, checkpoint)
    notes = [f"{c.facts.path.name}: 0 steps, the run's own weights, left out" for c in found if not c.steps]
    for reading in readings:
        for checkpoint in later:
            facts = score_checkpoint(run, trace, reading, checkpoint, watcher)
            notes += differing_reading(manifest, reading, facts)
    run.take_checksums()
    entries = [
        {
            "steps": checkpoint.steps,
            "name": checkpoint.facts.path.name,
            "weights_sha256": checkpoint.facts.weights_sha256,
            "legs": [reading.leg(checkpoint) for reading in readings],
        }
        for checkpoint in later
    ]
    fit = fit_staleness(_updates(trace, entries), notes=list(dict.fromkeys(notes)))
    content = {
        "schema_version": STALENESS_SCHEMA_VERSION,
        "of": _whose(manifest, trace),
        "checkpoints": entries,
        **to_json(dataclasses.replace(fit, updates=None)),
    }
    del content["updates"]
    write_json(staleness_path(run), content)
    return fit


def read_staleness(run: RunDirectory) -> StalenessFit | None:
    """What `measure_staleness` found, with the measured log-ratios where their legs are still there.

    Returns:
        None where nothing was measured, or only for other responses or weights than the run has now.

    Raises:
        RunDirectoryError: The file is damaged or of another version.
    """
    path = staleness_path(run)
    if not path.is_file():
        return None
    held = read_json(path)
    version = held.get("schema_version") if isinstance(held, dict) else None
    if version != STALENESS_SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} has schema version {version!r}, this version reads {STALENESS_SCHEMA_VERSION}",
            hint="measure the staleness again",
        )
    manifest = run.read_manifest()
    num_parts = int(manifest["num_parts"])
    trace = Trace(run, num_parts)
    try:
        if held["of"] != _whose(manifest, trace):
            return None
        fit, entries = _from_file(held), held["checkpoints"]
        there = all(
            leg_is_complete(run, leg, num_parts) and leg_weights(run, leg) == entry["weights_sha256"]
            for entry in entries
            for leg in entry["legs"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{path} is damaged: {error!r}", hint="measure the staleness again"
        ) from error
    return dataclasses.replace(fit, updates=_updates(trace, entries)) if there else fit


def staleness_path(run: RunDirectory) -> Path:
    """staleness.json of a run."""
    return run.path / "staleness.json"


def _later(found: Sequence[Checkpoint]) -> list[Checkpoint]:
    later = [checkpoint for checkpoint in found if checkpoint.steps > 0]
    if not later:
        raise ConfigError(
            "staleness needs a checkpoint after the run's own weights", hint=MEND.format("CHECKPOINT")
        )
    if len({checkpoint.steps for checkpoint in later}) < len(later):
        raise ConfigError(
            f"two checkpoints have the same number of steps: {sorted(c.label for c in later)}",
            hint="give one checkpoint for each number of steps",
        )
    return later


def _updates(trace: Trace, entries: Sequence[Mapping[str, Any]]) -> MeasuredUpdates:
    """Log-ratios of the checkpoints' legs: first that of `train/forward`'s kind, then maybe `train/reference`'s."""
    old, rollout = trace.logprobs("train/forward"), trace.rollout
    movement = None
    if len(entries[0]["legs"]) > 1:
        exact = trace.logprobs("train/reference")
        movement = [trace.logprobs(entry["legs"][1]) - exact for entry in entries]
    return MeasuredUpdates.of(
        [entry["steps"] for entry in entries],
        [trace.logprobs(entry["legs"][0]) - old for entry in entries],
        old - rollout.logprobs,
        rollout.offsets,
        rollout.prompt_index,
        movement=movement,
    )


def _whose(manifest: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
    """What a fit belongs to: the run's weights and responses."""
    return {
        "weights_sha256": manifest["model"].get("weights_sha256"),
        "responses_sha256": responses_hash(trace.recorded),
    }


def _from_file(held: Mapping[str, Any]) -> StalenessFit:
    """The fit that `measure_staleness` wrote, without its log-ratios."""

    def point(fields: Mapping[str, Any]) -> StalenessPoint:
        values: dict[str, Any] = {
            key: Estimate(**value) if isinstance(value, dict) else value for key, value in fields.items()
        }
        return StalenessPoint(**values)

    return StalenessFit(
        model=StalenessModel(**held["model"]),
        kl_per_step=Estimate(**held["kl_per_step"]),
        growth=Estimate(**held["growth"]),
        misfit=held["misfit"],
        points=tuple(point(fields) for fields in held["points"]),
        notes=tuple(held["notes"]),
    )
