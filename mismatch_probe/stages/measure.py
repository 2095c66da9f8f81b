"""Measure: from the legs on disk to result.json, findings and verdict included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mismatch_probe import __version__
from mismatch_probe.config.bars import load_bars
from mismatch_probe.errors import InconclusiveError
from mismatch_probe.result import RESULT_SCHEMA_VERSION, to_json
from mismatch_probe.stages.leg_section import legs_section
from mismatch_probe.stages.routing_section import routing_section
from mismatch_probe.trace.parts import write_json
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace
from mismatch_probe.verdict import NOT_INVALIDATING, judge

METHODS = ("vespo", "token_tis", "seq_tis", "gspo")


def measure_run(run: RunDirectory, bar_changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measures a scored run, judges it and writes result.json.

    Args:
        run: A run whose legs are on disk.
        bar_changes: Bars other than the shipped ones, by key.

    Returns:
        The content of result.json.

    Raises:
        InconclusiveError: There is no training-side leg, no token, or the ids do not line up.
        RunDirectoryError: A part is missing or damaged.
        ConfigError: An unknown bar.
    """
    from mismatch_probe.export.recommend import recommend

    bars = load_bars(bar_changes)
    manifest = run.read_manifest()
    trace = Trace(run, int(manifest["num_parts"]))
    legs = [leg for leg in manifest["legs"] if _is_complete(run, leg, int(manifest["num_parts"]))]
    if "train/forward" not in legs:
        raise InconclusiveError(
            "the leg train/forward was not taken, so there is nothing to compare with",
            hint=f"run: mismatch-probe score {run.path}",
        )
    result: dict[str, Any] = {
        "schema_version": RESULT_SCHEMA_VERSION,
        "provenance": _provenance(manifest, trace, legs),
        **_drift_sections(trace),
        "legs": to_json(legs_section(trace, legs)),
        "routing": to_json(_routing(manifest, trace, legs)),
        "weights": to_json(_weights(trace)),
    }
    verdict = judge(result, bars)
    result.update(
        verdict=verdict.name,
        exit_code=verdict.exit_code,
        verdict_sentence=verdict.sentence,
        findings=to_json(verdict.findings),
        bars=bars.model_dump(),
    )
    result["recommendation"] = to_json(recommend(result))
    write_json(run.result_path, result)
    manifest["stages"]["measure"] = "done"
    run.write_manifest(manifest)
    return result


def _is_complete(run: RunDirectory, leg: str, num_parts: int) -> bool:
    path = run.rollout_part if leg == "rollout/decode" else lambda part: run.score_part(leg, part)
    return all(path(part).is_file() for part in range(num_parts))


def _drift_sections(trace: Trace) -> dict[str, Any]:
    from mismatch_probe.stats.sequence_summary import summarise_sequences
    from mismatch_probe.stats.token_summary import summarise_tokens
    from mismatch_probe.stats.validity import validity_checks

    rollout = trace.rollout
    train = trace.logprobs("train/forward")
    entropy = trace.entropy("train/forward")
    checks = validity_checks(train, rollout.logprobs, rollout.offsets, rollout.prompt_index, entropy=entropy)
    finite = np.isfinite(train) & np.isfinite(rollout.logprobs)
    if not finite.all():
        # Sequence sums with a hole in them are not sequence sums: nothing downstream of this can be had.
        worst = int(np.searchsorted(rollout.offsets, np.flatnonzero(~finite)[0], side="right") - 1)
        raise InconclusiveError(
            f"{int((~finite).sum())} log-probabilities are not finite, the first in sequence {rollout.sequence_id[worst]}",
            hint="find out which side writes them: compare scores/*/part-*.parquet at that sequence",
        )
    log_ratio = train - rollout.logprobs
    trusted = not any(check.status == "fail" and check.code not in NOT_INVALIDATING for check in checks)
    return {
        "data_quality": {"trusted": trusted, "checks": to_json(checks), "excluded_tokens": 0},
        "token": to_json(
            summarise_tokens(
                log_ratio,
                rollout_logprobs=rollout.logprobs,
                train_logprobs=train,
                offsets=rollout.offsets,
                clusters=rollout.prompt_index,
                entropy=entropy,
            )
        ),
        "sequence": {
            **to_json(
                summarise_sequences(
                    log_ratio, rollout.offsets, rollout.prompt_index, advantages=rollout.advantage
                )
            ),
            "max_length": int(rollout.lengths.max()),
        },
    }


def _routing(manifest: Mapping[str, Any], trace: Trace, legs: list[str]) -> dict[str, Any]:
    model = manifest["model"]
    if not model["num_moe_layers"]:
        return {"available": False, "reason": f"{model['name']} is a dense model: it has no experts"}
    if not manifest["routing"]:
        return {"available": False, "reason": "routes were not captured (routing=false)"}
    details = manifest["engines"].get("rollout", {}).get("details", {})
    return routing_section(
        trace,
        legs,
        layers=model["moe_layers"],
        num_experts=int(model["num_experts"]),
        ordered=bool(details.get("routing_ordered")),
    )


def _weights(trace: Trace) -> dict[str, Any]:
    from mismatch_probe.simulate import simulate_methods

    rollout = trace.rollout
    responses = simulate_methods(
        trace.logprobs("train/forward"),
        rollout.logprobs,
        rollout.offsets,
        rollout.prompt_index,
        rollout.advantage,
        methods=METHODS,
    )
    return {"reads": "train/forward over rollout/decode (pi/mu)", "methods": responses}


def _provenance(manifest: Mapping[str, Any], trace: Trace, legs: list[str]) -> dict[str, Any]:
    rollout = trace.rollout
    engines = manifest["engines"]
    reward = None if rollout.reward is None else float(rollout.reward.mean())
    return {
        "command": manifest["command"],
        "created_at": manifest["created_at"],
        "run_id": manifest["run_id"],
        "tool_version": __version__,
        "model": dict(manifest["model"]),
        "train_model": dict(manifest["train_model"]),
        "rollout": engines.get("rollout"),
        "train": engines.get("train"),
        "reference": engines.get("reference"),
        "sampling": manifest["config"]["sampling"],
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
