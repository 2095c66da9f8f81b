"""A run's drift profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mismatch_probe.drift.document import profile_from_json, profile_to_json
from mismatch_probe.drift.flips import FlipRates, LayerFlips, fit_flips
from mismatch_probe.drift.injection import fit_law
from mismatch_probe.drift.length_match import match_length_law
from mismatch_probe.drift.log_odds import checked_logprobs
from mismatch_probe.drift.marginals import cell_edges
from mismatch_probe.drift.profile import DriftProfile, Provenance
from mismatch_probe.drift.reading import read_drift
from mismatch_probe.drift.returns import return_intervals
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.extrapolate import StalenessModel
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout
from mismatch_probe.trace.run_directory import RunDirectory
from mismatch_probe.trace.trace import Trace


def profile_of_run(run: RunDirectory | Path | str, *, force: bool = False) -> DriftProfile:
    """See `DriftProfile.from_run`."""
    from mismatch_probe.result import read_result
    from mismatch_probe.stages.staleness import read_staleness

    directory = run if isinstance(run, RunDirectory) else RunDirectory.open_existing(Path(run))
    result = read_result(directory.result_path)
    if not (result.get("data_quality") or {}).get("trusted", False) and not force:
        raise ConfigError(
            "the run failed validity: its drift is a fault and not noise to be injected",
            hint="mend what the findings name and audit again, or force it",
        )
    if result.get("verdict") not in ("pass", "drift") and not force:
        raise InconclusiveError(
            f"the run's verdict is {result.get('verdict')}: there is no drift to profile",
            hint="use more prompts or longer responses, or force it",
        )
    manifest = directory.read_manifest()
    trace = Trace(directory, int(manifest["num_parts"]))
    rollout = trace.rollout
    layout = SequenceLayout.from_arrays(rollout.offsets, rollout.prompt_index)
    routing = result["routing"]
    flipped = _flipped(trace, int(manifest["model"]["num_experts"])) if routing.get("available") else None
    stale = read_staleness(directory)
    return profile_of_arrays(
        trace.logprobs("train/forward"),
        rollout.logprobs,
        layout,
        provenance=_provenance(result["provenance"], len(rollout.prompt_ids)),
        flipped=flipped,
        routing=routing,
        staleness=None if stale is None else stale.model,
        staleness_reason=None
        if stale is not None
        else "no later checkpoints were measured (--staleness-from)",
    )


def profile_of_arrays(
    train_logprobs: FloatArray,
    rollout_logprobs: FloatArray,
    layout: SequenceLayout,
    *,
    provenance: Provenance,
    flipped: BoolArray | None = None,
    routing: Mapping[str, Any] | None = None,
    staleness: StalenessModel | None = None,
    staleness_reason: str | None = None,
) -> DriftProfile:
    """Measures a profile.

    Args:
        train_logprobs: float64 [tokens] log pi, nats.
        rollout_logprobs: float64 [tokens] log mu, nats.
        layout: Sequences and prompts.
        provenance: What to write of where it comes from.
        flipped: bool [tokens] whether a flip predicted the token, or None.
        routing: The `routing` section of result.json, for the rates by layer.
        staleness: As measured.
        staleness_reason: Why there is none.

    Returns:
        The profile, its numbers rounded as in the file: writing and reading it gives an equal one.
    """
    train, rollout = checked_logprobs(train_logprobs, "train"), checked_logprobs(rollout_logprobs, "rollout")
    if train.shape != rollout.shape or train.size != layout.num_tokens:
        raise ConfigError("both sides and the layout must have the same tokens")
    section = routing or {}
    flips = None
    if flipped is not None:
        flips = _flip_rates(flipped, train, rollout, layout, section)
    law = match_length_law(fit_law(train, rollout, layout, flipped, flips), train - rollout, rollout, layout)
    reason = str(section.get("reason") or "routes were not compared")
    measured = read_drift(train - rollout, layout, flipped, flip_reason=reason)
    returns = return_intervals(measured, law, rollout, layout)
    profile = DriftProfile(provenance, measured, returns, law, staleness, staleness_reason)
    return profile_from_json(profile_to_json(profile))


def _flipped(trace: Trace, num_experts: int) -> BoolArray:
    """Whether a flip in any layer predicted each response token that counts, bool [tokens]."""
    from mismatch_probe.routing.agreement import compare_routes
    from mismatch_probe.routing.flips import predicting_positions

    recorded, counted = trace.recorded, trace.counted
    prompt_lengths, begin = np.diff(recorded.prompt_offsets), 0
    parts: list[BoolArray] = []
    for sampled, trained in zip(
        trace.route_parts("rollout/decode"), trace.route_parts("train/forward"), strict=True
    ):
        end = begin + len(sampled.sequence_id)
        compared = compare_routes(sampled.experts, trained.experts, num_experts=num_experts)
        places = predicting_positions(prompt_lengths[begin:end], recorded.lengths[begin:end])
        parts.append(np.asarray(compared.flipped[places].any(axis=1)))
        begin = end
    flipped: BoolArray = np.concatenate(parts)
    return flipped if counted is None else flipped[counted]


def _flip_rates(
    flipped: BoolArray,
    train: FloatArray,
    rollout: FloatArray,
    layout: SequenceLayout,
    section: Mapping[str, Any],
) -> FlipRates:
    layers = tuple(
        LayerFlips(int(row["layer"]), _complement(row["set_agreement"]))
        for row in section.get("layers") or []
    )
    mean = section.get("mean_flipped_layers")
    nothing = Estimate(None, None, None, 0, "not measured")
    return fit_flips(
        flipped,
        rollout,
        cell_edges(train, rollout),
        layout,
        layers=layers,
        mean_flipped_layers=nothing if mean is None else _estimate(mean),
    )


def _estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(row["value"], row["ci_low"], row["ci_high"], row["n"], row.get("reason"))


def _complement(row: Mapping[str, Any]) -> Estimate:
    def rest(value: float | None) -> float | None:
        return None if value is None else 1.0 - value

    return Estimate(
        rest(row["value"]), rest(row["ci_high"]), rest(row["ci_low"]), row["n"], row.get("reason")
    )


def _provenance(given: Mapping[str, Any], num_prompts: int) -> Provenance:
    sampling = given.get("sampling") or {}
    prompts = given.get("prompts") or {}
    top_k = sampling.get("top_k")
    return Provenance(
        run_id=str(given["run_id"]),
        created_at=str(given["created_at"]),
        tool_version=str(given["tool_version"]),
        # A model may be named by its folder.
        model=PurePosixPath(str(given["model"]["name"]).replace("\\\\", "/").rstrip("/")).name,
        rollout=_side(given.get("rollout"), "engine"),
        train=_side(given.get("train"), "scorer"),
        temperature=_number(sampling.get("temperature")),
        top_p=_number(sampling.get("top_p")),
        top_k=None if top_k is None else int(top_k),
        num_prompts=num_prompts,
        prompts_sha256=prompts.get("sha256"),
        responses_sha256=given.get("responses_sha256"),
    )


def _side(side: Mapping[str, Any] | None, name: str) -> str:
    """Engine, version and dtype in words; "not known" for tokens that were imported."""
    if not side:
        return "not known"
    return " ".join(str(side[key]) for key in (name, "version", "dtype") if side.get(key))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
