"""ms-swift: arguments of `swift rlhf` as YAML. Keys as of ms-swift 4.6."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mismatch_probe.export.annotated import Entry
from mismatch_probe.export.applied.ms_swift import methods as applied_methods
from mismatch_probe.export.exporter import ExportedConfig, Plan, register_exporter
from mismatch_probe.export.provenance import cap_entries, parameter_entries, replay_reason, sampling_entries
from mismatch_probe.export.target import ON_TOP, WITHOUT_MISMATCH, Target
from mismatch_probe.export.thresholds import mean_band, token_cap

TARGET = Target(
    name="ms-swift",
    title="ms-swift 4.6",
    fragment="for `swift rlhf FILE.yaml`",
    layout="yaml",
    package="ms-swift",
    versions=("4.6",),
    history=None,
    loaded=True,
    applied=applied_methods,
)
_MODE = "rollout_importance_sampling_mode"
_THRESHOLD = "rollout_importance_sampling_threshold"
_WITHOUT = ("ppo_clip", "dapo", "two_sided")
_LOSS = {"dapo": "dapo", "cispo": "cispo", "sapo": "sapo"}
_CLIP = {"eps_low": "epsilon", "eps_high": "epsilon_high"}
_PARAMETERS = {
    "dapo": _CLIP,
    "gspo": _CLIP,
    "sapo": {"tau_pos": "tau_pos", "tau_neg": "tau_neg"},
    "two_sided": {**_CLIP, "delta": "delta"},
}
_REASONS = dict.fromkeys(
    ("seq_tis", "seq_mis"),
    "sequence_truncate and sequence_mask read the geometric mean there, not the product",
)


@register_exporter("ms-swift", summary="rollout_importance_sampling of ms-swift (YAML)")
def export_ms_swift(result: Mapping[str, Any], plan: Plan) -> ExportedConfig:
    """Writes arguments of `swift rlhf`; see `mismatch_probe.export.exporter.Exporter`."""
    expressible = (*_WITHOUT, "token_tis", "icepop", "geo_rs", "opsm", "gspo", "cispo", "sapo")
    TARGET.refuse_unless(plan, expressible, _REASONS)
    entries = [*_correction(result, plan), *_objective(plan)]
    entries += sampling_entries(result, "temperature", "top_p", "top_k")
    contents = WITHOUT_MISMATCH if plan.method in _WITHOUT else ON_TOP
    return TARGET.write(result, plan, contents, entries, _notes(result, plan))


def _correction(result: Mapping[str, Any], plan: Plan) -> list[Entry]:
    metrics = Entry("log_rollout_offpolicy_metrics", True, "Watch the drift that this config was fitted to.")
    if plan.method in _WITHOUT:
        return [metrics]
    band = mean_band(result)
    if plan.method == "geo_rs":
        entries = [Entry(_MODE, "sequence_mask", "Drops responses by the geometric mean of pi_old / mu.")]
        if band is not None:
            entries.append(
                Entry(
                    _THRESHOLD, band.high, f"Set by {band.because}; the upper bound, ms-swift has no lower."
                )
            )
        return [*entries, metrics]
    mode, why = "token_truncate", "Each token's pi_old / mu, truncated above."
    if plan.method == "icepop":
        mode, why = "token_mask", "IcePop's upper half: the ratio up to the threshold, nothing above."
    entries = [Entry(_MODE, mode, why), *cap_entries(_THRESHOLD, token_cap(result)), metrics]
    if plan.method == "opsm" and band is not None:
        above = f"Above what healthy responses show: {band.because}."
        entries.append(Entry("off_policy_sequence_mask_delta", band.widest_drop(), above))
    return entries


def _objective(plan: Plan) -> list[Entry]:
    loss = _LOSS.get(plan.method, "grpo")
    entries = [Entry("loss_type", loss, f"The objective that {plan.method} goes with.")]
    if plan.method == "gspo":
        why = "GSPO: the geometric mean of pi / pi_old of a response."
        entries.append(Entry("importance_sampling_level", "sequence", why))
    if plan.method == "cispo":
        why = "ms-swift takes the cap itself, where verl takes its distance from 1. The paper's 1 + 0.28; not measured here."
        entries.append(Entry("epsilon_high", 1.28, why))
    return entries + parameter_entries(plan, _PARAMETERS.get(plan.method, {}))


def _notes(result: Mapping[str, Any], plan: Plan) -> list[str]:
    notes = [
        "needs vLLM 0.10.2 or later; ms-swift's logged chi2_seq is of the geometric mean, verl's of the product"
    ]
    if plan.method in ("icepop", "geo_rs"):
        notes.append("ms-swift has an upper bound only: what lies below the band stays in")
    if plan.method == "geo_rs":
        notes.append("the responses that stay keep their tokens' pi_old / mu, which nothing caps")
    because = replay_reason(result, plan)
    if plan.routing_replay and because is not None:
        notes.append(
            f"`megatron rlhf` replays routes with router_replay_mode: R3, `swift rlhf` cannot; {because[:-1]}"
        )
    if plan.fp32_head:
        notes.append("ms-swift has no switch for a float32 output head")
    notes.append("epsilon answers to staleness; this run measured mismatch at equal weights")
    return notes
