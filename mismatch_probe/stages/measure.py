"""Measure: from the legs on disk to result.json, findings and verdict included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mismatch_probe import __version__
from mismatch_probe.config.bars import load_bars
from mismatch_probe.errors import InconclusiveError
from mismatch_probe.result import RESULT_SCHEMA_VERSION, to_json
from mismatch_probe.stages.diagnosis_section import causes_section
from mismatch_probe.stages.drift_sections import broken_legs, drift_sections
from mismatch_probe.stages.leg_section import legs_section
from mismatch_probe.stages.routing_section import routing_section
from mismatch_probe.stages.shard import check_shards
from mismatch_probe.stages.weight_sync import weight_sync_section
from mismatch_probe.stages.weights_section import read_responses, weights_sections
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace
from mismatch_probe.verdict import judge


def measure_run(run: RunDirectory, bar_changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measures a scored run, judges it and writes result.json.

    Args:
        run: A run whose legs are on disk.
        bar_changes: Bars other than the shipped ones, by key.

    Returns:
        The content of result.json.

    Raises:
        InconclusiveError: There is no training-side leg, no token, or the ids do not line up. Values that are no
            log-probabilities do not raise: they are named, and every number they enter is absent with the reason.
        RunDirectoryError: A part is missing or damaged.
        ConfigError: An unknown bar.
    """
    from mismatch_probe.recommendation import recommend

    bars = load_bars(bar_changes)
    manifest = run.read_manifest()
    check_shards(run, manifest)
    num_parts = int(manifest["num_parts"])
    trace = Trace(run, num_parts)
    legs = [leg for leg in manifest["legs"] if all(p.is_file() for p in run.leg_files(leg, num_parts))]
    if "train/forward" not in legs:
        raise InconclusiveError(
            "the leg train/forward was not taken, so there is nothing to compare with",
            hint=f"run: mismatch-probe score {run.path}",
        )
    weight_sync = weight_sync_section(run, trace, legs)
    result: dict[str, Any] = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "provenance": _provenance(manifest, trace, legs),
        **drift_sections(trace, token_classes=_token_classes(manifest, trace)),
        "weight_sync": weight_sync,
    }
    broken = broken_legs(trace, legs)
    legs = [leg for leg in legs if leg not in broken]
    responses = None
    if result["data_quality"]["unusable"] is None:
        responses = read_responses(run, trace, num_parts)
        result |= {
            "legs": to_json(legs_section(trace, legs, weight_sync)),
            "routing": to_json(_routing(manifest, trace, legs)),
            **weights_sections(responses),
        }
    else:
        # The fault is named all the same: what it is stands in data_quality, what to do about it in causes.
        result |= {name: dict(result["token"]) for name in ("legs", "routing", "weights")}
    result["data_quality"]["broken_legs"] = broken
    counted = trace.counted
    result["data_quality"]["masked_tokens"] = 0 if counted is None else int(np.count_nonzero(~counted))
    result["causes"] = causes_section(run, trace, legs, manifest, result)
    verdict = judge(result, bars)
    result.update(
        verdict=verdict.name,
        exit_code=verdict.exit_code,
        verdict_sentence=verdict.sentence,
        findings=to_json(verdict.findings),
        bars=bars.model_dump(exclude_none=True),
    )
    result["recommendation"] = to_json(recommend(result, responses))
    write_json(run.result_path, result)
    manifest["stages"]["measure"] = "done"
    run.write_manifest(manifest)
    return result


def _token_classes(
    manifest: Mapping[str, Any], trace: Trace
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]] | None:
    """Class of every response token and the names of the classes, where the model's tokenizer is on this machine."""
    from mismatch_probe.prompts.token_classes import CLASSES, classify_vocabulary

    folder = manifest["model"].get("path")
    classes = (
        None if folder is None else classify_vocabulary(Path(folder), int(manifest["model"]["vocab_size"]))
    )
    return None if classes is None else (classes[trace.rollout.response_tokens], CLASSES)


def _routing(manifest: Mapping[str, Any], trace: Trace, legs: list[str]) -> dict[str, Any]:
    model = manifest["model"]
    if model["num_moe_layers"] is None:
        return {"available": False, "reason": "the model is not known: the tokens were imported"}
    if not model["num_moe_layers"]:
        return {"available": False, "reason": f"{model['name']} is a dense model: it has no experts"}
    if not manifest["routing"]:
        imported = manifest.get("imported")
        if imported is not None:
            sides = "the rollout's routes but not the trainer's" if imported.get("routes") else "no routes"
            return {"available": False, "reason": f"the dump has {sides}"}
        return {"available": False, "reason": "routes were not captured (routing=false)"}
    if not trace.has_routes("train/forward"):
        return {
            "available": False,
            "reason": "train/forward was scored without routes: remove scores/train and score with routing=true",
        }
    details = manifest["engines"].get("rollout", {}).get("details", {})
    return routing_section(
        trace,
        legs,
        layers=model["moe_layers"],
        num_experts=int(model["num_experts"]),
        ordered=bool(details.get("routing_ordered")),
    )


def _provenance(manifest: Mapping[str, Any], trace: Trace, legs: list[str]) -> dict[str, Any]:
    rollout = trace.rollout
    engines = manifest["engines"]
    reward = None if rollout.reward is None else float(rollout.reward.mean())
    imported = manifest.get("imported")
    return {
        "command": manifest["command"],
        "created_at": manifest["created_at"],
        "run_id": manifest["run_id"],
        "tool_version": __version__,
        # Where the checkpoint lay is for resuming; it says nothing to whoever reads a result elsewhere.
        "model": {key: value for key, value in manifest["model"].items() if key != "path"},
        "train_model": dict(manifest["train_model"]),
        "rollout": engines.get("rollout"),
        "train": engines.get("train"),
        "reference": engines.get("reference"),
        # The sampling of an import is what its user said, not what the configuration would default to.
        "sampling": manifest["config"]["sampling"] if imported is None else imported["sampling"],
        "imported": imported,
        "prompts": dict(manifest["prompts"]),
        "responses_sha256": manifest["responses_sha256"],
        "versions": manifest["versions"],
        "num_sequences": len(rollout.sequence_id),
        "num_tokens": int(rollout.offsets[-1]),
        "num_prompt_tokens": int(rollout.prompt_offsets[-1]),
        "mean_reward": reward,
        "has_advantages": rollout.advantage is not None,
        "finish_reasons": {
            reason: rollout.finish_reason.count(reason) for reason in sorted(set(rollout.finish_reason))
        },
        "legs": legs,
    }
