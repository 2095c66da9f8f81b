"""Locate: hidden states of both sides on a few of a run's sequences, and the module where they part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mismatch_probe.causes.localisation import LocationSums, describe
from mismatch_probe.engines.layer_sites import FUSED, HEAD, MEANINGS
from mismatch_probe.errors import InconclusiveError
from mismatch_probe.findings import finding
from mismatch_probe.result import read_result, to_json
from mismatch_probe.stages.ablation_rows import Subject
from mismatch_probe.stages.events import Watcher
from mismatch_probe.stages.job import FedSequence, LayerStatesJob
from mismatch_probe.stages.layer_work import read_states
from mismatch_probe.stages.process import run_worker
from mismatch_probe.stages.record_score import REFERENCE_DTYPE
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory

LOCATION_SCHEMA_VERSION = 1
FOLDER = "location"


def locate_run(
    run: RunDirectory, watcher: Watcher, *, num_sequences: int = 8, max_tokens: int = 512, keep: bool = False
) -> dict[str, Any]:
    """Finds the module where the sides part; writes `location.json`, and adds it to result.json where there is one.

    The first response of each of the first prompts is fed, each in one prefill. The caller holds the run directory.

    Args:
        run: A recorded run.
        watcher: Told of progress.
        num_sequences: How many sequences.
        max_tokens: Most tokens of a response; the rest is left out.
        keep: Whether the hidden states stay in the run directory.

    Raises:
        InconclusiveError: There is no response.
        CaptureError: A side does not hand over its hidden states.
    """
    subject = Subject(run, num_sequences)
    sequences = choose_sequences(subject, num_sequences, max_tokens)
    folder = run.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    places = {name: (folder / name).resolve() for name in ("rollout", "train", "reference")}
    for place in places.values():
        place.mkdir(parents=True)
    try:
        facts = {
            name: run_worker(
                _job(subject, sequences, name, places),
                run.log_path(f"locate-{name}"),
                _follow(watcher, name, len(sequences)),
            )
            for name in places
        }
        sums = LocationSums()
        heads = read_states(places["rollout"] / f"{HEAD}.safetensors")
        for sequence in sequences:
            watcher.message(f"comparing sequence {sequence.sequence_id}")
            _add(sums, places, sequence.sequence_id, heads)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    location = sums.location()
    content = {
        "schema_version": LOCATION_SCHEMA_VERSION,
        "num_sequences": len(sequences),
        "num_tokens": sum(len(s.prompt_token_ids) + len(s.response_token_ids) for s in sequences),
        "rollout": _named(facts["rollout"], "engine"),
        "train": _named(facts["train"], "scorer"),
        "reference_dtype": REFERENCE_DTYPE,
        "fused": {name: list(parts) for name, parts in FUSED.items()},
        "meanings": MEANINGS,
        **to_json(location),
        "findings": to_json(
            []
            if location.first is None
            else [
                finding(
                    "MP605", "error", location.sentence, observed=location.first.over_rounding, bar=1.0,
                    unit="times rounding", n=sum(len(s.response_token_ids) for s in sequences),
                )
            ]
        ),
        "name": None if location.first is None else describe(location.first),
    }  # fmt: skip
    write_json(run.path / "location.json", content)
    if run.result_path.is_file():
        write_json(run.result_path, {**read_result(run.result_path), "location": content})
    return content


def choose_sequences(subject: Subject, number: int, max_tokens: int) -> tuple[FedSequence, ...]:
    """The first response with tokens of each of the first prompts.

    Raises:
        InconclusiveError: There is none.
    """
    chosen: dict[str, FedSequence] = {}
    for row in subject.table.select(
        ["sequence_id", "prompt_id", "prompt_token_ids", "response_token_ids"]
    ).to_pylist():
        if row["prompt_id"] not in chosen and row["response_token_ids"]:
            chosen[row["prompt_id"]] = FedSequence(
                sequence_id=row["sequence_id"],
                prompt_token_ids=row["prompt_token_ids"],
                response_token_ids=row["response_token_ids"][:max_tokens],
            )
    if not chosen:
        raise InconclusiveError("the run has no response to feed", hint="record longer responses")
    return tuple(chosen.values())[:number]


def _job(
    subject: Subject, sequences: tuple[FedSequence, ...], name: str, places: dict[str, Path]
) -> LayerStatesJob:
    side = "rollout" if name == "rollout" else "train"
    model, routed = subject.manifest["model"], bool(subject.manifest["routing"])
    moe = {"num_moe_layers": model["num_moe_layers"], "top_k": model["top_k"] or 0} if routed else {}
    spec = subject.spec(side, dtype=REFERENCE_DTYPE if name == "reference" else None, options={})
    return LayerStatesJob(
        side="rollout" if side == "rollout" else "train",
        name=subject.config[side]["engine" if side == "rollout" else "scorer"],
        spec={**spec, **moe, **({"routing": routed} if side == "rollout" else {})},
        sampling=subject.sampling,
        sequences=sequences,
        states=places["rollout"],
        out=None if side == "rollout" else places[name],
    )


def _add(sums: LocationSums, places: dict[str, Path], sequence_id: int, heads: dict[str, Any]) -> None:
    name = f"{sequence_id}.safetensors"
    rollout = read_states(places["rollout"] / name)
    rollout.pop("routes", None)
    train, reference = (read_states(places[side] / name) for side in ("train", "reference"))
    sums.add(
        rollout,
        [_way(states, "free") for states in (train, reference)],
        [_way(states, "substituted") for states in (train, reference)],
        heads[str(sequence_id)],
    )


def _way(states: dict[str, Any], way: str) -> dict[str, Any]:
    return {name.removeprefix(f"{way}/"): rows for name, rows in states.items() if name.startswith(f"{way}/")}


def _named(facts: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        "name": facts[key],
        "version": facts["version"],
        "dtype": facts["dtype"],
        "device": facts["device"],
    }


def _follow(watcher: Watcher, name: str, total: int) -> Callable[[dict[str, Any]], None]:
    stage = f"{name} states"

    def on_event(event: dict[str, Any]) -> None:
        match event["event"]:
            case "loading":
                watcher.message(f"starting {event['what']}")
            case "leg":
                watcher.stage_started(stage, total, 0, name)
            case "progress":
                watcher.stage_progress(stage, event["sequences"], event["tokens"])

    return on_event
