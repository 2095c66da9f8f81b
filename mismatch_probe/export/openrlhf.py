"""OpenRLHF: arguments of train_ppo_ray. Keys as of OpenRLHF 0.11.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.openrlhf import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import (
    fp32_reason,
    hyperparameter,
    parameter_entries,
    sampling_entries,
    sampling_notes,
    value_of,
)
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import mean_band, token_band, token_cap

TARGET = Target(
    name="openrlhf",
    title="OpenRLHF 0.11.2",
    fragment='arguments of openrlhf.cli.train_ppo_ray, as "${MISMATCH_ARGS[@]}"',
    layout="arguments",
    package="openrlhf",
    versions=("0.11.2",),
    history=(
        "OpenRLHF 0.11.0 and older have is_correction_enable and is_correction_type (tis, icepop, seq-mask-tis) instead "
        "of level, mode and gating."
    ),
    loaded=True,
    applied=applied_methods,
)
_KEY = "algo.advantage.is_correction"
_WITHOUT = ("ppo_clip", "dapo", "dual_clip", "gspo")
_REASONS = {
    "seq_tis": "a statistic of the response only drops, and it is the geometric mean",
    "seq_mis": "its sequence statistic is the geometric mean, not the product",
}


@register_exporter("openrlhf", summary="is_correction arguments of OpenRLHF (bash array)")
def export_openrlhf(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes arguments of train_ppo_ray; see `mismatch_probe.export.exporter.Exporter`."""
    TARGET.refuse_unless(plan, (*_WITHOUT, "token_tis", "icepop", "geo_rs"), _REASONS)
    entries = [
        *_correction(result, plan),
        *_objective(plan),
        *(
            Entry(f"rollout.{one.key}", one.value, one.because)
            for one in sampling_entries(result, "temperature", "top_p")
        ),
    ]
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return TARGET.write(result, plan, contents, entries, _notes(result, plan))


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    if plan.method in _WITHOUT:
        why = "No correction of pi_old / mu."
        if plan.method == "gspo":
            why = "With gspo any other level would put mu in the place of pi_old and correct nothing else."
        return [Entry(f"{_KEY}_level", "off", why)]
    level, mode, why = {
        "token_tis": ("token", "clip", "Each token's pi_old / mu, truncated above."),
        "icepop": ("token", "mask", "IcePop: the ratio inside the band, nothing outside."),
        "geo_rs": ("seq", "mask", "Drops responses by the geometric mean of pi_old / mu."),
    }[plan.method]
    entries = [
        Entry(f"{_KEY}_level", level, why),
        Entry(f"{_KEY}_mode", mode, "What happens outside the threshold."),
        Entry(f"{_KEY}_gating", "ratio", "The statistic is the ratio, not a divergence."),
    ]
    if plan.method == "token_tis":
        cap = token_cap(result)
        if cap is not None:
            entries.append(
                Entry(f"{_KEY}_threshold", cap.value, f"Set by {cap.because}. One number is an upper bound.")
            )
        return entries
    band = token_band(result) if plan.method == "icepop" else mean_band(result)
    if band is not None:
        entries.append(
            Entry(f"{_KEY}_threshold", (band.low, band.high), f"Low and high, set by {band.because}.")
        )
    return entries


def _objective(plan: Plan) -> list[Entry]:
    if plan.method == "dual_clip":
        return parameter_entries(plan, {"c": "actor.dual_clip"})
    if plan.method not in ("gspo", "dapo"):
        return []
    clip = (float(hyperparameter(plan, "eps_low")), float(hyperparameter(plan, "eps_high")))
    entries = [
        Entry("actor.eps_clip_low_high", clip, f"{plan.method} eps_low and eps_high, default of the method.")
    ]
    if plan.method == "gspo":
        entries.insert(
            0, Entry("actor.policy_loss_type", "gspo", "The geometric mean of pi / pi_old of a response.")
        )
    return entries


def _notes(result: Mapping[str, Any], plan: Plan) -> list[str]:
    notes = sampling_notes(result, "OpenRLHF", "top_k")
    if plan.method == "geo_rs":
        notes.append(
            "OpenRLHF weights the responses that stay with their tokens' pi_old / mu, which nothing caps then"
        )
    if plan.method not in _WITHOUT and token_cap(result) is None:
        notes.append("the run has no quantiles; OpenRLHF's own threshold 0.5 5.0 stays in force")
    if plan.routing_replay:
        explained = value_of(result, "routing.replay.explained")
        notes.append(f"OpenRLHF has no routing replay: the measured share ({explained}) stays in the weights")
    if plan.fp32_head:
        notes.append(
            f"OpenRLHF has no switch for a float32 output head; {fp32_reason(result, plan).rstrip('.')}"
        )
    return notes
